# MoCo v1 on COCO, at the length of DenseCL's recipe
_base_ = [
    '../_base_/models/mocov1_r50.py',
    '../_base_/views/mocov1.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/sgd_steplr_200e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
