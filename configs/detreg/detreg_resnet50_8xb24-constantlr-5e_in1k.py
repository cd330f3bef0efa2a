# DETReg's published recipe on ImageNet, from a SwAV ResNet-50 of 800 epochs: model.pretrained names
# its file. The learning rate does not fall.
_base_ = [
    '../_base_/models/detreg_r50.py',
    '../_base_/datasets/in1k.py',
    '../_base_/views/detreg.py',
    '../_base_/schedules/adamw_constantlr_5e_detreg.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(
    batch_size=24,
    collate_fn=dict(type='mmdense.pad_collate'),
    dataset=dict(pipeline=_base_.train_pipeline),
)
default_hooks = dict(checkpoint=dict(interval=1))
