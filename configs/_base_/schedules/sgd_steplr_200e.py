_base_ = './sgd_coslr_200e.py'

# MoCo v1's schedule: MoCo v2's with steps at 60 % and 80 % of the run instead of a cosine
param_scheduler = [dict(type='MultiStepShareLR', by_epoch=True, shares=[0.6, 0.8], gamma=0.1)]
