_base_ = [
    '../_base_/models/mae_vit-base.py',
    '../_base_/views/mae.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/adamw_coslr_800e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=512, dataset=dict(pipeline=_base_.train_pipeline))
