_base_ = './r50.py'

model = dict(
    type='DINO',
    num_crops=(2, 8),
    student_temperature=0.1,
    teacher_temperature=0.04,
    center_momentum=0.9,
    # the teacher takes this share of the student: 0.004 at first, 0 at the end, by a cosine
    base_momentum=0.004,
    # torchvision's initialization: the last BatchNorm of a block begins at 1
    backbone=dict(norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=dict(
        type='DINONeck',
        in_channels=2048,
        hid_channels=2048,
        out_channels=256,
        num_prototypes=65536,
        norm_last_layer=True,
    ),
)
