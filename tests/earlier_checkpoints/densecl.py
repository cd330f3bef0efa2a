_base_ = '../../configs/densecl_r50_coco.py'

model = dict(
    queue_len=10,
    feat_dim=4,
    backbone=dict(depth=18, stem_channels=4, base_channels=2),
    neck=dict(in_channels=16, hid_channels=8, out_channels=4),
)

view_pipeline = [
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='MultiView', num_views=2, transforms=[view_pipeline]),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

randomness = dict(seed=0)
optim_wrapper = dict(optimizer=dict(lr=0.01))
