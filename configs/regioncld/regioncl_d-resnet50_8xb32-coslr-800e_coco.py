# Ours: RegionCL-D with the schedule and the batch of DenseCL on COCO.
_base_ = [
    '../_base_/models/regioncld_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/sgd_coslr_800e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(checkpoint=dict(interval=50))
