# What is transferred, here alone: CHECKPOINT=my.pth python mmdetection/tools/train.py CONFIG. Any
# checkpoint that mmdense reads, a path or a URL. In a config that inherits one of ours:
# model = dict(backbone=dict(init_cfg=dict(checkpoint=...))).
checkpoint = '{{$CHECKPOINT:work_dirs/densecl_r50_coco/backbone.pth}}'
init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint)
