_base_ = './r50.py'

# The authors have published neither code nor these numbers: layer, networks, match, negatives,
# temperature and weights are ours. BYOL, and on the same map of 7×7 locations at 224 px a projector
# and a predictor of locations. BatchNorm is synchronised in all of them.
norm_cfg = dict(type='SyncBN', requires_grad=True)
mlp = dict(hid_channels=4096, out_channels=256, num_layers=2, norm_cfg=norm_cfg)
vector_mlp = dict(
    mlp, type='mmpretrain.NonLinearNeck', with_bias=True, with_last_bias=True, with_last_bn=False
)
local_mlp = dict(mlp, type='ProjectionMLP')
model = dict(
    type='LCLoss',
    # the momentum encoder takes this share of the online network: 0.01 at first, 0 at the end
    base_momentum=0.01,
    # mmpretrain initialises it as PixPro's code: Kaiming fan_out, last BN of a block 0
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(
        type='GlobalLocalNeck',
        in_channels=2048,
        projector=dict(vector_mlp, with_avg_pool=True),
        local_projector=local_mlp,
    ),
    head=dict(
        type='CosinePredictionHead',
        predictor=dict(vector_mlp, in_channels=256, with_avg_pool=False),
    ),
    local_head=dict(
        type='LocalContrastHead', predictor=dict(local_mlp, in_channels=256), temperature=0.1
    ),
    local_weight=0.1,
)
del mlp, vector_mlp, local_mlp  # no part of the config
