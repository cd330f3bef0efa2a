_base_ = './r50.py'

# CCOP: MoCo v2 on images, and on regions of an FPN, which is pretrained too.
model = dict(
    type='CCOP',
    queue_len=65536,
    feat_dim=128,
    momentum=0.001,
    backbone=dict(out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN'), zero_init_residual=False),
    neck=dict(type='FPN', out_channels=256),
    projector=dict(type='DropoutMLP', hid_channels=2048, out_channels=128),
    region_projector=dict(type='DropoutMLP', hid_channels=2048, out_channels=128),
    head=dict(type='InfoNCEHead', temperature=0.2),
    # from the first step to the last: least IoU, shift and scale of the copies of a box
    curriculum=dict(
        type='BoxCurriculum', threshold=(0.8, 0.4), shift=(0.15, 0.6), scale=(0.35, 1.4)
    ),
)
