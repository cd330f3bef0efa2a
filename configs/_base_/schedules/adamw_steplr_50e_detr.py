# Conditional DETR's schedule: AdamW, a tenth of the learning rate for the backbone, weight decay
# for all parameters, gradients clipped to a length of 0.1, a tenth after four fifths. No warm-up.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [dict(type='MultiStepShareLR', by_epoch=True, shares=[0.8], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50)
auto_scale_lr = dict(base_batch_size=16)
