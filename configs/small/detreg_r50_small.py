# DETReg for small data: `mmdense pretrain` sets these values for 2,000 images and one GPU of 24 GB
# with --amp. It inherits this file for up to 20,000 images, and sets what depends on their number.
_base_ = '../detreg/detreg_r50_coco.py'

train_dataloader = dict(batch_size=64, dataset=dict(data_root='data/images', data_prefix=''))
train_cfg = dict(max_epochs=800)
optim_wrapper = dict(optimizer=dict(lr=0.00011547))
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(
    logger=dict(interval=31),  # an epoch has 31 steps
    checkpoint=dict(interval=50),
)
