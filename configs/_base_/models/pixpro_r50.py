_base_ = './r50.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
projector = dict(
    type='ProjectionMLP',
    in_channels=2048,
    hid_channels=4096,
    out_channels=256,
    num_layers=2,
    norm_cfg=norm_cfg,
)
model = dict(
    type='PixPro',
    # the momentum encoder takes this share of the student: 0.01 at first, 0 at the end, by a cosine
    momentum=0.01,
    end_momentum=0.0,
    # mmpretrain initialises it as the published code: Kaiming fan_out, last BN of a block 0
    backbone=dict(norm_cfg=norm_cfg),
    neck=projector,
    head=dict(type='PixProHead', in_channels=256, num_layers=1, power=2, clamp=0, pos_ratio=0.7),
)
