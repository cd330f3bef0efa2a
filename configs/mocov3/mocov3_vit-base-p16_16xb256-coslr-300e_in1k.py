_base_ = [
    '../_base_/models/mocov3_vit-base.py',
    '../_base_/views/mocov3_vit.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/adamw_coslr_300e_b4096.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=256, dataset=dict(pipeline=_base_.train_pipeline))
