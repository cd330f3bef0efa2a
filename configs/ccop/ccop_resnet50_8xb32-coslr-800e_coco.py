# The authors' recipe on COCO train2017, all images, float32; their proposals are selective
# search's (configs/_base_/views/ccop.py).
_base_ = [
    '../_base_/models/ccop_r50.py',
    '../_base_/views/ccop.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/sgd_coslr_800e_ccop.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(checkpoint=dict(interval=50))
