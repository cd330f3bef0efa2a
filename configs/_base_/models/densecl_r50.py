_base_ = './r50.py'

model = dict(
    type='DenseCL',
    queue_len=65536,
    feat_dim=128,
    momentum=0.001,
    loss_lambda=0.5,
    backbone=dict(
        norm_cfg=dict(type='BN'),
        zero_init_residual=False,
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d', mode='fan_in', distribution='normal'),
            dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
        ],
    ),
    neck=dict(type='DenseCLNeck', in_channels=2048, hid_channels=2048, out_channels=128),
    head=dict(type='InfoNCEHead', temperature=0.2),
)
