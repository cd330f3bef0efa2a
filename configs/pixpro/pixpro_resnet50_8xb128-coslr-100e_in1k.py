_base_ = [
    '../_base_/models/pixpro_r50.py',
    '../_base_/views/byol.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
