# Ours: RegionCL-M's schedule, with DenseCL's lr of 0.03 for 256 images.
_base_ = [
    '../_base_/models/regioncld_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_200e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.12))
auto_scale_lr = dict(base_batch_size=1024)
