_base_ = './r50.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
mlp = dict(
    type='ProjectionMLP',
    hid_channels=4096,
    out_channels=256,
    num_layers=3,
    norm_cfg=norm_cfg,
    act_cfg=dict(type='GELU'),
    init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0),
)
model = dict(
    type='SlotCon',
    num_prototypes=256,
    student_temperature=0.1,
    teacher_temperature=0.07,
    center_momentum=0.9,
    group_weight=0.5,
    # the momentum encoder takes this share of the student: 0.01 at first, 0 at the end, by a cosine
    momentum=0.01,
    end_momentum=0.0,
    # mmpretrain initialises it as the published code: Kaiming fan_out, last BN of a block 0
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(mlp, in_channels=2048),
    head=dict(
        type='SlotContrastHead',
        predictor=dict(mlp, in_channels=256, dense=False),
        temperature=0.2,
    ),
)
del mlp  # no part of the config
