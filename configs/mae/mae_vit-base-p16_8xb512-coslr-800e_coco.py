# MAE's ImageNet recipe on COCO; the length is that of the other algorithms on COCO.
_base_ = [
    '../_base_/models/mae_vit-base.py',
    '../_base_/views/mae.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/adamw_coslr_800e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=512, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(
    logger=dict(interval=28),  # an epoch has 28 steps
    checkpoint=dict(interval=50),
)
