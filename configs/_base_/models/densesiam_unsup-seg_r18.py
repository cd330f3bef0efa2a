# DenseSiam's unsupervised segmentation, as released: K = 27 classes, A = 128 auxiliary channels,
# C = 128 channels of the decoder. The backbone starts from ImageNet weights WITH labels.
norm_cfg = dict(type='SyncBN')
mlp = dict(
    type='ProjectionMLP',
    in_channels=128,
    hid_channels=128,
    out_channels=128,
    with_bias=False,
    norm_cfg=norm_cfg,
)
projector = dict(mlp, num_layers=3, with_last_bn=True)
model = dict(
    type='DenseSiam',
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=18,
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm_cfg,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    decoder=dict(type='DenseSiamDecoder', in_channels=[64, 128, 256, 512], out_channels=128),
    neck=dict(projector, out_channels=27),
    predictor=dict(mlp, in_channels=27, out_channels=27),
    auxiliary_neck=projector,
    auxiliary_predictor=mlp,
    region_head=dict(
        type='RegionContrastHead',
        projector=dict(projector, dense=False, with_last_bias=False),
        predictor=dict(mlp, dense=False),
        temperature=0.1,
    ),
    region_weight=0.1,
    rebalance=True,  # the class weights of the released config: frequent classes weigh more
)
del mlp, projector  # no part of the config
