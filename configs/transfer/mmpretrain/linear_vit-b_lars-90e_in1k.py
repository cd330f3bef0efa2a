# Linear classification on ImageNet, MAE's protocol: the class token of a frozen ViT-B, BatchNorm
# without parameters, and one linear layer by LARS with lr 0.1 for 256 images, 10 epochs of warm-up
# and a cosine, 90 epochs, without weight decay; 16384 images a step; resized by bicubic
# interpolation, which mmpretrain's own config leaves bilinear.
_base_ = [
    'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py',
    '_base_/protocol.py',
]

model = dict(backbone=dict(init_cfg=dict(_delete_=True, **_base_.init_cfg)))

_base_.train_pipeline[1].interpolation = 'bicubic'
_base_.test_pipeline[1].interpolation = 'bicubic'
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=16384)
