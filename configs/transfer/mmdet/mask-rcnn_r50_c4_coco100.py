# Mask R-CNN R50-C4 on a part of COCO, such as 100 images in COCO's own layout: 600 iterations of
# 4 images on one GPU. The schedule is no paper's; the detector is that of
# mask-rcnn_r50_c4_1x_coco.py.
_base_ = './mask-rcnn_r50_c4_1x_coco.py'

train_dataloader = dict(
    batch_size=4, sampler=dict(type='InfiniteSampler', shuffle=True), batch_sampler=None
)

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=600, val_interval=600)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=600, milestones=[450, 550], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=300))
log_processor = dict(by_epoch=False)
_base_.custom_hooks[0].update(interval=600, num_samples=100)
