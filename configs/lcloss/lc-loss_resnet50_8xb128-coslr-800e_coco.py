# Our recipe for ImageNet on COCO; the length is that of DenseCL, PixPro and SlotCon on COCO.
_base_ = [
    '../_base_/models/lcloss_r50.py',
    '../_base_/views/byol.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/lars_coslr_100e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
