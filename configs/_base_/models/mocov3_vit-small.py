_base_ = './r50.py'

mlp = dict(
    type='mmpretrain.NonLinearNeck',
    hid_channels=4096,
    out_channels=256,
    with_bias=False,
    with_last_bias=False,
    with_last_bn_affine=False,
    with_avg_pool=False,
)
model = dict(
    type='MoCoV3',
    base_momentum=0.01,
    backbone=dict(_delete_=True, type='MoCoV3ViT', arch='mocov3-small', img_size=224),
    neck=dict(mlp, in_channels=384, num_layers=3),
    head=dict(
        type='InfoNCEPredictionHead',
        temperature=0.2,
        predictor=dict(mlp, in_channels=256, num_layers=2),
    ),
)
del mlp  # no part of the config
