# SimCLR on COCO: as many images are seen as in 74 epochs of ImageNet. The batch fits 8 GPUs.
_base_ = [
    '../_base_/models/simclr_r50.py',
    '../_base_/views/simclr.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/lars_coslr_100e_b4096.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
# 0.3 for each 256 images
optim_wrapper = dict(optimizer=dict(lr=1.2, lr_in_buffer=True))
train_cfg = dict(max_epochs=800)
auto_scale_lr = dict(base_batch_size=1024)
default_hooks = dict(checkpoint=dict(interval=50))
