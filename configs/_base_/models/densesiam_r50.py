_base_ = './r50.py'

# DenseSiam's pretraining variant: no code of it is released. The projector is SimSiam's with 1×1
# convolutions, next to SimSiam's own on the mean of the map. Ours: the layer, widths, weights, the
# sampling grid, and the cosine in the image loss.
norm_cfg = dict(type='SyncBN')
predictor = dict(
    type='ProjectionMLP',
    in_channels=2048,
    hid_channels=512,
    out_channels=2048,
    with_bias=False,
    norm_cfg=norm_cfg,
)
model = dict(
    type='DenseSiam',
    backbone=dict(norm_cfg=norm_cfg, zero_init_residual=True),
    neck=dict(
        type='DenseSiamNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=2048,
        norm_cfg=norm_cfg,
    ),
    predictor=predictor,
    image_predictor=dict(predictor, dense=False),
    image_weight=1.0,
)
del predictor  # no part of the config
