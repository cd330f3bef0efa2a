_base_ = './r50.py'

model = dict(
    type='SimCLR',
    # images in [0, 1]: no mean, no standard deviation
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
    backbone=dict(norm_cfg=dict(type='SyncBN'), zero_init_residual=True),
    neck=dict(
        type='SimCLRNeck', in_channels=2048, hid_channels=2048, out_channels=128, num_layers=2
    ),
    head=dict(type='NTXentHead', temperature=0.1),
)
