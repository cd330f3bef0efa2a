_base_ = './r50.py'

model = dict(
    type='SwAV',
    data_preprocessor=dict(std=[58.14, 57.12, 57.375]),  # the authors' 0.228, not 0.229, for red
    # the authors' last BatchNorm of a block begins at 1
    backbone=dict(norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=dict(
        type='mmpretrain.SwAVNeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        norm_cfg=dict(type='SyncBN'),
    ),
    head=dict(
        type='mmpretrain.SwAVHead',
        loss=dict(
            type='mmpretrain.SwAVLoss',
            feat_dim=128,
            sinkhorn_iterations=3,
            epsilon=0.05,
            temperature=0.1,
            crops_for_assign=[0, 1],
            num_crops=[2, 6],
            num_prototypes=3000,
        ),
    ),
)
