# The authors have published no recipe: this one is PixPro's, which is our choice.
_base_ = [
    '../_base_/models/lcloss_r50.py',
    '../_base_/views/byol.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
