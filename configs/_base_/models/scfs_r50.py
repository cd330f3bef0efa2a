_base_ = './dino_r50.py'

model = dict(
    type='SCFS',
    # along a line, from 0.04 in the first epoch
    teacher_temperature=0.07,
    warmup_teacher_temperature=0.04,
    warmup_teacher_temperature_epochs=50,
    backbone=dict(out_indices=(1, 2, 3)),
    # each stage has one; in_channels are those of its map
    stage_neck=dict(
        type='StageNeck',
        mid_channels=256,
        hid_channels=2048,
        out_channels=256,
        norm_cfg=dict(type='SyncBN'),
    ),
)
