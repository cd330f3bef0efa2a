# Linear classification on ImageNet, SimSiam's protocol: a frozen ResNet-50, and one linear layer by
# LARS with lr 0.1 for 256 images, cosine, 90 epochs, without weight decay; 4096 images a step.
_base_ = [
    'mmpretrain::simsiam/benchmarks/resnet50_8xb512-linear-coslr-90e_in1k.py',
    '_base_/protocol.py',
]

model = dict(backbone=dict(init_cfg=dict(_delete_=True, **_base_.init_cfg)))
auto_scale_lr = dict(base_batch_size=4096)
