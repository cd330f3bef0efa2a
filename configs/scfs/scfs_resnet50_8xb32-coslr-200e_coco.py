# SCFS's recipe on COCO train2017: ours. A comment of the released code has the batch, the epochs,
# the crops and lr; nothing else is published.
_base_ = [
    '../_base_/models/scfs_r50.py',
    '../_base_/views/scfs.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/sgd_coslr_200e_scfs.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(
    checkpoint=dict(interval=12),
    clip_each=dict(type='ClipEachGradientHook', max_norm=3.0),
    freeze_last_layer=dict(type='FreezeLayersHook', layers=['last_layer'], epochs=1),
)
optim_wrapper = dict(optimizer=dict(lr=0.3))
