# DETReg for small data: `mmdense pretrain` sets these values for 2,000 images and one GPU of 24 GB
# with --amp. It inherits this file for up to 20,000 images, and sets what depends on their number.
_base_ = '../detreg/detreg_r50_coco.py'

train_dataloader = dict(batch_size=192, dataset=dict(data_root='data/images', data_prefix=''))
train_cfg = dict(max_epochs=800)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=50),
)
