_base_ = [
    '../_base_/models/mocov2_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_200e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
