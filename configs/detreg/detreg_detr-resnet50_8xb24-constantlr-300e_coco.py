# DETReg's ImageNet recipe for a DETR on COCO; the length is ours.
_base_ = [
    '../_base_/models/detreg_detr_r50.py',
    '../_base_/datasets/coco.py',
    '../_base_/views/detreg.py',
    '../_base_/schedules/adamw_constantlr_5e_detreg.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(
    batch_size=24,
    collate_fn=dict(type='mmdense.pad_collate'),
    dataset=dict(pipeline=_base_.train_pipeline),
)
train_cfg = dict(max_epochs=300)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=None)
