_base_ = './r50.py'

mlp = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=4096,
    out_channels=256,
    num_layers=2,
    with_bias=False,
    with_last_bias=False,
)
model = dict(
    type='MoCoV3',
    base_momentum=0.01,
    backbone=dict(norm_cfg=dict(type='SyncBN'), zero_init_residual=True),
    neck=dict(mlp, in_channels=2048, with_last_bn_affine=False, with_avg_pool=True),
    head=dict(
        type='InfoNCEPredictionHead',
        temperature=1.0,
        predictor=dict(mlp, in_channels=256, with_last_bn=False, with_avg_pool=False),
    ),
)
del mlp  # no part of the config
