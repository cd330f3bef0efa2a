# MoCo v2's and DenseCL's schedule: SGD, a cosine to 0 by epoch, no warm-up, weight decay on every
# parameter. lr is for a total batch of 256. The schedule is as long as the run: for another length
# set max_epochs alone.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4),
)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200)
auto_scale_lr = dict(base_batch_size=256)
