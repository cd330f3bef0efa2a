_base_ = './pixpro_resnet50_8xb128-coslr-100e_in1k.py'

# the paper's starred rows: whole images are made alike too, by heads of their own
model = dict(
    instance_neck=_base_.projector,
    instance_head=dict(
        type='InstanceConsistencyHead', predictor=dict(_base_.projector, in_channels=256)
    ),
    instance_weight=1.0,
)
