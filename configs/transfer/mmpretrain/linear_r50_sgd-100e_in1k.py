# Linear classification on ImageNet, MoCo's protocol, which DenseCL and MoCo v2 follow: a frozen
# ResNet-50, its BatchNorm too, and one linear layer by SGD with lr 30, a tenth after 60 and 80 of
# 100 epochs, without weight decay; 256 images a step.
_base_ = [
    'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py',
    '_base_/protocol.py',
]

model = dict(backbone=dict(init_cfg=dict(_delete_=True, **_base_.init_cfg)))
auto_scale_lr = dict(base_batch_size=256)
