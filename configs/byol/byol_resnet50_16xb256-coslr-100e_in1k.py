_base_ = [
    '../_base_/models/byol_r50.py',
    '../_base_/views/byol_bicubic.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e_b4096.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=256, dataset=dict(pipeline=_base_.train_pipeline))
# 0.45 for each 256 images
optim_wrapper = dict(optimizer=dict(lr=7.2))
