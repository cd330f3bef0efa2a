_base_ = [
    '../_base_/models/mocov3_r50.py',
    '../_base_/views/mocov3.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e_b4096.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=512, dataset=dict(pipeline=_base_.train_pipeline))
# 0.6 for each 256 images
optim_wrapper = dict(optimizer=dict(lr=9.6))
