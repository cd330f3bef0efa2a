_base_ = [
    '../_base_/models/slotcon_r50.py',
    '../_base_/views/slotcon.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/lars_coslr_100e_b512.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
