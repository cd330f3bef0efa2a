# The local loss on SimSiam, which is our combination. The target is the other view's projection
# without gradient. The learning rate of the local predictor is constant, as that of SimSiam's own.
_base_ = '../simsiam/simsiam_resnet50_8xb32-coslr-800e_coco.py'

local_mlp = dict(
    type='ProjectionMLP', hid_channels=4096, out_channels=256, norm_cfg=dict(type='SyncBN')
)
model = dict(
    type='LCLossSimSiam',
    neck=dict(
        _delete_=True,
        type='GlobalLocalNeck',
        in_channels=2048,
        projector=_base_.model.neck,
        local_projector=local_mlp,
    ),
    local_head=dict(
        type='LocalContrastHead', predictor=dict(local_mlp, in_channels=256), temperature=0.1
    ),
    local_weight=0.1,
)
del local_mlp  # no part of the config
