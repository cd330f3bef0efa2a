_base_ = '../../configs/slotcon_r50_coco.py'

norm_cfg = dict(type='BN')
mlp = dict(hid_channels=8, out_channels=4, norm_cfg=norm_cfg)
model = dict(
    num_prototypes=6,
    backbone=dict(depth=18, stem_channels=4, base_channels=2, norm_cfg=norm_cfg),
    neck=dict(mlp, in_channels=16),
    head=dict(predictor=dict(mlp, in_channels=4)),
)

crop = dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0))
flip = dict(type='RandomFlip', prob=0.5)
view_pipelines = [[crop, flip], [dict(crop, min_overlap=0.01), flip]]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=[1, 1], transforms=view_pipelines),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(lr=0.1))
