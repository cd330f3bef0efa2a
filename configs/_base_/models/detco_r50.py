_base_ = './r50.py'

model = dict(
    type='DetCo',
    queue_len=65536,
    feat_dim=128,
    momentum=0.001,
    # weights of the stages 2 to 5
    stage_weights=(0.1, 0.4, 0.7, 1.0),
    # global with global, local with local, local queries with global keys
    pairings=('gg', 'll', 'gl'),
    backbone=dict(out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN'), zero_init_residual=False),
    neck=dict(type='DetCoNeck', out_channels=128, grid=3),
    head=dict(type='InfoNCEHead', temperature=0.2),
)
