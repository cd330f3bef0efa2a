# SCFS for small data: `mmdense pretrain` sets these values for 2,000 images and one GPU of 24 GB
# with --amp. It inherits this file for up to 20,000 images, and sets what depends on their number.
_base_ = '../scfs/scfs_r50_coco.py'

model = dict(warmup_teacher_temperature_epochs=200)  # a quarter of the run
train_dataloader = dict(batch_size=64, dataset=dict(data_root='data/images', data_prefix=''))
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.075))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=17, eta_min=0.0012)  # 527 steps
train_cfg = dict(max_epochs=800)
default_hooks = dict(
    logger=dict(interval=31),  # an epoch has 31 steps
    checkpoint=dict(interval=50),
    freeze_last_layer=dict(epochs=4),  # a two hundredth of the run
)
