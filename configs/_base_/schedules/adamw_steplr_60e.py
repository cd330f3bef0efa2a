# UP-DETR's schedule: AdamW, weight decay for all parameters, gradients clipped to a length of 0.1,
# the learning rate a tenth after two thirds of the run. No warm-up.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [dict(type='MultiStepShareLR', by_epoch=True, shares=[2 / 3], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=60)
auto_scale_lr = dict(base_batch_size=256)
