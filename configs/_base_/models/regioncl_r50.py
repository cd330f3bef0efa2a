_base_ = './mocov2_r50.py'

# RegionCL-M: MoCo v2's networks, initialized as DenseCL's. aligned=False of RegionSwap is the
# authors' rule for the rectangle; the default, whole grid cells, is ours.
model = dict(
    type='RegionCL',
    swap=dict(type='RegionSwap'),
    backbone=dict(
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d', mode='fan_in', distribution='normal'),
            dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
        ],
    ),
    neck=dict(
        init_cfg=dict(type='Kaiming', layer='Linear', mode='fan_in', distribution='normal'),
    ),
)
