# Feature distillation's optimizer and schedule with a ResNet-50 on COCO: ours, as the batch and the
# length are; no paper gives results for it.
_base_ = [
    '../_base_/models/distill_dinov2-vitb14_r50.py',
    '../_base_/views/distill.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/adamw_coslr_300e_distill.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=128, dataset=dict(pipeline=_base_.train_pipeline))
default_hooks = dict(checkpoint=dict(interval=19))
