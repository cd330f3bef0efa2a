# What all detectors here change in mmdet's own configs, to be read as _base_.backbone…:
# PyTorch-style ResNet from a pretrained backbone, all BatchNorm trained and synchronised,
# nothing frozen; short side 640 to 800.
checkpoint = 'work_dirs/densecl_r50_coco/backbone.pth'
init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint)
sync_bn = dict(type='SyncBN', requires_grad=True)
backbone = dict(
    style='pytorch', frozen_stages=-1, norm_eval=False, norm_cfg=sync_bn, init_cfg=init_cfg
)
resize = dict(
    type='RandomChoiceResize',
    scales=[(1333, side) for side in (640, 672, 704, 736, 768, 800)],
    keep_ratio=True,
)
