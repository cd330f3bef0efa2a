_base_ = [
    '../_base_/models/simclr_r50.py',
    '../_base_/views/simclr.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e_b4096.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=256, dataset=dict(pipeline=_base_.train_pipeline))
# 0.3 for each 256 images; its buffer holds steps of their own learning rate
optim_wrapper = dict(optimizer=dict(lr=4.8, lr_in_buffer=True))
