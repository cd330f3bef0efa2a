# CCOP for small data: `mmdense pretrain` sets these values for 2,000 images and one GPU of 24 GB
# with --amp. It inherits this file for up to 20,000 images, and sets what depends on their number.
_base_ = '../ccop/ccop_r50_coco.py'

model = dict(queue_len=1024)  # in a longer queue an image's own old keys are negatives
train_dataloader = dict(batch_size=128, dataset=dict(data_root='data/images', data_prefix=''))
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=0.15))
default_hooks = dict(logger=dict(interval=15))  # an epoch has 15 steps
