_base_ = '../../configs/detco_r50_coco.py'

model = dict(
    queue_len=10,
    feat_dim=4,
    stage_weights=(0.4, 0.7, 1.0),
    backbone=dict(depth=18, stem_channels=4, base_channels=1, out_indices=(1, 2, 3)),
    neck=dict(out_channels=4),
)

crop = dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0))
flip = dict(type='RandomFlip', prob=0.5)
view_pipeline = [crop, flip]
patch_pipeline = [
    dict(crop, scale=96, crop_ratio_range=(0.6, 1.0)),
    flip,
    dict(type='JigsawPatches', grid=3, patch_size=32),
]
train_pipeline = [
    dict(type='LoadImage'),
    dict(
        type='MultiView',
        num_views=[2, 2],
        transforms=[view_pipeline, patch_pipeline],
        with_boxes=False,
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

randomness = dict(seed=17)
optim_wrapper = dict(optimizer=dict(lr=0.01))
