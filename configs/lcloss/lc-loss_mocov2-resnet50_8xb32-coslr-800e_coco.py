# The local loss on MoCo v2, our combination. MoCo has no predictor and does not synchronise
# BatchNorm; neither does the local branch here. The local loss has one direction, query to key.
_base_ = '../mocov2/mocov2_resnet50_8xb32-coslr-800e_coco.py'

model = dict(
    type='LCLossMoCo',
    neck=dict(
        _delete_=True,
        type='GlobalLocalNeck',
        in_channels=2048,
        projector=_base_.model.neck,
        local_projector=dict(type='ProjectionMLP', hid_channels=4096, out_channels=256),
    ),
    local_head=dict(type='LocalContrastHead', temperature=0.1),
    local_weight=0.1,
)
