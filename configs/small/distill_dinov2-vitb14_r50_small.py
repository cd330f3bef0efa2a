# Dense distillation for small data: `mmdense pretrain` sets these values for 2,000 images and one
# GPU of 24 GB with --amp. It inherits this file for up to 20,000 images, and sets what depends on
# their number.
_base_ = '../distill/distill_dinov2-vitb14_r50_coco.py'

train_dataloader = dict(batch_size=256, dataset=dict(data_root='data/images', data_prefix=''))
auto_scale_lr = dict(base_batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=0.0003))
param_scheduler = [dict(_base_.param_scheduler[0], warmup=72)]  # epochs: 504 steps
train_cfg = dict(max_epochs=800)
default_hooks = dict(
    logger=dict(interval=7),  # an epoch has 7 steps
    checkpoint=dict(interval=50),
)
