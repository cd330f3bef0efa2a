# UP-DETR's ImageNet recipe on COCO; the length is ours.
_base_ = [
    '../_base_/models/updetr_r50.py',
    '../_base_/datasets/coco.py',
    '../_base_/views/updetr.py',
    '../_base_/schedules/adamw_steplr_60e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(
    batch_size=32,
    collate_fn=dict(type='mmdense.pad_collate'),
    dataset=dict(pipeline=_base_.train_pipeline),
)
train_cfg = dict(max_epochs=300)
default_hooks = dict(checkpoint=dict(interval=19))
