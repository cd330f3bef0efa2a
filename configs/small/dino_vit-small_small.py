# DINO's ViT-S for small data: `mmdense pretrain --backbone vit-small` sets these values for 2,000
# images and one GPU of 24 GB with --amp. It inherits this file for up to 20,000 images and a ViT of
# any size, and sets what depends on them.
_base_ = '../dino/dino_vit-small_in1k.py'

train_dataloader = dict(batch_size=128, dataset=dict(data_root='data/images', data_prefix=''))
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(warmup=34)  # 510 steps
train_cfg = dict(max_epochs=800)
default_hooks = dict(
    logger=dict(interval=15),  # an epoch has 15 steps
    checkpoint=dict(interval=50),
    freeze_last_layer=dict(epochs=8),  # a hundredth of the run
)
