_base_ = '../../configs/pixpro/pixpro-instance_resnet50_8xb128-coslr-100e_in1k.py'

norm_cfg = dict(type='BN')
projector = dict(in_channels=16, hid_channels=8, out_channels=4, norm_cfg=norm_cfg)
model = dict(
    backbone=dict(depth=18, stem_channels=4, base_channels=2, norm_cfg=norm_cfg),
    neck=projector,
    head=dict(in_channels=4),
    instance_neck=projector,
    instance_head=dict(predictor=dict(projector, in_channels=4)),
)

view_pipeline = [
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1], transforms=[view_pipeline, view_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(lr=0.1))
