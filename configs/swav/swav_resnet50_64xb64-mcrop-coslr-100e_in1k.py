_base_ = [
    '../_base_/models/swav_r50.py',
    '../_base_/views/swav.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e_swav_b4096.py',
    '../_base_/default_runtime.py',
]

# 313 iterations are an epoch of ImageNet; a batch has more images than prototypes: no queue
model = dict(freeze_prototypes_niters=313)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=_base_.train_pipeline))
