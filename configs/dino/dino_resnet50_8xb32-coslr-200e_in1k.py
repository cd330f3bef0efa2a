# SCFS's recipe without the search, which SCFS's authors compare with.
_base_ = [
    '../_base_/models/dino_r50.py',
    '../_base_/views/scfs.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_200e_scfs.py',
    '../_base_/default_runtime.py',
]

model = dict(teacher_temperature=0.07, warmup_teacher_temperature_epochs=50)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(
    clip_each=dict(type='ClipEachGradientHook', max_norm=3.0),
    freeze_last_layer=dict(type='FreezeLayersHook', layers=['last_layer'], epochs=1),
)
