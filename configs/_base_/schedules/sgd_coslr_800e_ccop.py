_base_ = './sgd_coslr_800e.py'

# CCOP's schedule: DenseCL's on COCO, times a linear warm-up by iteration over ten epochs
param_scheduler = [
    dict(type='LinearWarmupLR', start_factor=1e-4, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True),
]
