# DINO's ViT-S with the settings that the authors' code has by default.
_base_ = [
    '../_base_/models/dino_vit-small.py',
    '../_base_/views/dino.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/adamw_coslr_100e_dino.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(
    clip_each=dict(type='ClipEachGradientHook', max_norm=3.0),
    freeze_last_layer=dict(type='FreezeLayersHook', layers=['last_layer'], epochs=1),
)
