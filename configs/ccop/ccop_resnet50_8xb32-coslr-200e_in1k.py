# Ours: the authors published no recipe on ImageNet. Length and learning rate are those of MoCo v2
# and DenseCL.
_base_ = [
    '../_base_/models/ccop_r50.py',
    '../_base_/views/ccop.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_800e_ccop.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=200)
optim_wrapper = dict(optimizer=dict(lr=0.03))
