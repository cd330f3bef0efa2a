# MoCo v2: mmpretrain's model as in its mocov2_resnet50_8xb32-coslr-200e_in1k, under DenseCL's
# recipe: the same views, optimizer and schedule, so that what differs is the dense branch.
_base_ = '../../../configs/densecl/densecl_resnet50_8xb32-coslr-800e_coco.py'

model = dict(
    _delete_=True,
    type='mmpretrain.MoCo',
    queue_len=65536,
    feat_dim=128,
    momentum=0.001,
    data_preprocessor=dict(
        type='mmpretrain.SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmpretrain.ResNet', depth=50, norm_cfg=dict(type='BN'), zero_init_residual=False
    ),
    neck=dict(
        type='mmpretrain.MoCoV2Neck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
        with_avg_pool=True,
    ),
    head=dict(
        type='mmpretrain.ContrastiveHead',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        temperature=0.2,
    ),
)
