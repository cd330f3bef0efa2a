# DETReg's schedule on ImageNet: AdamW, weight decay for all parameters, gradients clipped to a
# length of 0.1, a tenth of the learning rate for what places the sampled points. No warm-up, and
# the learning rate does not fall.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1))
    ),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5)
auto_scale_lr = dict(base_batch_size=192)
