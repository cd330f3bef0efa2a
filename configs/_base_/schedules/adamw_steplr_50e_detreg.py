# DETReg's schedule: AdamW, weight decay for all parameters, gradients clipped to a length of 0.1,
# a tenth of the learning rate for what places the sampled points, and a tenth for all after four
# fifths of the run. No warm-up.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1))
    ),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [dict(type='MultiStepShareLR', by_epoch=True, shares=[4 / 5], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50)
auto_scale_lr = dict(base_batch_size=192)
