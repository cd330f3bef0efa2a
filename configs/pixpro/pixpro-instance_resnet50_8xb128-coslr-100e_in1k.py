_base_ = './pixpro_resnet50_8xb128-coslr-100e_in1k.py'

# The paper's rows with a star: a second branch with its own heads makes complete images alike too.
model = dict(
    instance_neck=_base_.projector,
    instance_head=dict(
        type='InstanceConsistencyHead', predictor=dict(_base_.projector, in_channels=256)
    ),
    instance_weight=1.0,
)
