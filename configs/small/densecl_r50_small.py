# DenseCL for small data: what `mmdense pretrain` sets for 2,000 images and one GPU of 24 GB with
# --amp. It inherits this for up to 20,000 images, and sets what depends on their number.
_base_ = '../densecl/densecl_r50_coco.py'

model = dict(queue_len=1024)  # a longer one would hold an image's own old keys, as negatives
train_dataloader = dict(batch_size=256, dataset=dict(data_root='data/images', data_prefix=''))
# until then cells would be matched by random features
custom_hooks = [dict(type='LambdaWarmupHook', start_iters=1000)]
default_hooks = dict(logger=dict(interval=7))  # an epoch has 7 steps
