# SwAV's ImageNet recipe for 256 images a step on COCO; the length is DenseCL's on COCO. The queue
# begins and the prototypes move as late in the run as in the published one of 200 epochs.
_base_ = [
    '../_base_/models/swav_r50.py',
    '../_base_/views/swav.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/lars_coslr_200e_swav.py',
    '../_base_/default_runtime.py',
]

# 1848 iterations are four epochs of COCO
model = dict(queue_length=3840, epoch_queue_starts=60, freeze_prototypes_niters=1848)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
