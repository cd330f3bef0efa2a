# SwAV for small data: `mmdense pretrain` sets these values for 2,000 images and one GPU of 24 GB
# with --amp. It inherits this file for up to 20,000 images, and sets what depends on their number.
_base_ = '../swav/swav_r50_coco.py'

model = dict(
    head=dict(loss=dict(num_prototypes=512)),  # fewer than batch and queue have samples
    queue_length=960,  # fifteen batches
    freeze_prototypes_niters=124,  # a two hundredth of the run
)
train_dataloader = dict(batch_size=64, dataset=dict(data_root='data/images', data_prefix=''))
auto_scale_lr = dict(base_batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.3))
default_hooks = dict(logger=dict(interval=31))  # an epoch has 31 steps
