_base_ = './r50.py'

# the initialization of the published code, variance 1/fan_in (there cut off at two sigma)
init_cfg = [
    dict(
        type='Kaiming',
        layer=['Conv2d', 'Linear'],
        mode='fan_in',
        nonlinearity='linear',
        distribution='normal',
    ),
    dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
]
mlp = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=4096,
    out_channels=256,
    num_layers=2,
    with_bias=True,
    with_last_bn=False,
    init_cfg=init_cfg,
)
model = dict(
    type='BYOL',
    base_momentum=0.01,
    backbone=dict(norm_cfg=dict(type='SyncBN'), zero_init_residual=True, init_cfg=init_cfg),
    neck=dict(mlp, in_channels=2048, with_avg_pool=True),
    head=dict(
        type='CosinePredictionHead', predictor=dict(mlp, in_channels=256, with_avg_pool=False)
    ),
)
del init_cfg, mlp  # no part of the config
