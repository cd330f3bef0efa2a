_base_ = [
    '../_base_/models/mocov1_r50.py',
    '../_base_/views/mocov1.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_steplr_200e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
