# The same with a ResNet-18, on one GPU.
_base_ = './distill_dinov2-vitb14_r50_small.py'

model = dict(backbone=dict(depth=18, norm_cfg=dict(type='BN')))
