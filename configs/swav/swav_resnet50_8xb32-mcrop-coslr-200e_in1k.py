_base_ = [
    '../_base_/models/swav_r50.py',
    '../_base_/views/swav.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_200e_swav.py',
    '../_base_/default_runtime.py',
]

# 5005 iterations are an epoch of ImageNet
model = dict(queue_length=3840, epoch_queue_starts=15, freeze_prototypes_niters=5005)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
