_base_ = './sgd_coslr_200e.py'

# MoCo v1's schedule: MoCo v2's with steps at 60 % and 80 % of the run instead of a cosine. For
# another length set max_epochs and the milestones.
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[120, 160], gamma=0.1)]
