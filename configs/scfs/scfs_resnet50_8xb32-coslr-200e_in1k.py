_base_ = [
    '../_base_/models/scfs_r50.py',
    '../_base_/views/scfs.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_200e_scfs.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(
    clip_each=dict(type='ClipEachGradientHook', max_norm=3.0),
    freeze_last_layer=dict(type='FreezeLayersHook', layers=['last_layer'], epochs=1),
)
