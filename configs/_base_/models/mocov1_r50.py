_base_ = './mocov2_r50.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='mmpretrain.LinearNeck',
        in_channels=2048,
        out_channels=128,
        gap_dim=2,
        norm_cfg=None,
    ),
    head=dict(temperature=0.07),
)
