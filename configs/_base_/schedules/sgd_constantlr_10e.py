# DenseSiam's schedule for segmentation: SGD at a constant learning rate, weight decay on every
# parameter. lr is for a total batch of 256.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10)
auto_scale_lr = dict(base_batch_size=256)
