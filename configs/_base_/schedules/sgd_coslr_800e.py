_base_ = './sgd_coslr_200e.py'

# DenseCL's schedule on COCO: longer, at ten times the learning rate
optim_wrapper = dict(optimizer=dict(lr=0.3))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=800, begin=0, end=800)]
train_cfg = dict(max_epochs=800)
