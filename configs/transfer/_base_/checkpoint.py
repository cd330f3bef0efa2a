# The one place of the checkpoint: CHECKPOINT=my.pth python mmdetection/tools/train.py CONFIG, with
# the path or URL of any checkpoint that mmdense reads. In a config that inherits one of ours:
# model = dict(backbone=dict(init_cfg=dict(checkpoint=...))).
checkpoint = '{{$CHECKPOINT:work_dirs/densecl_r50_coco/backbone.pth}}'
init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint)
