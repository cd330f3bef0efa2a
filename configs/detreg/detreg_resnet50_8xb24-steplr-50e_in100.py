# DETReg's published recipe on ImageNet-100, from a SwAV ResNet-50 of 800 epochs.
_base_ = [
    '../_base_/models/detreg_r50.py',
    '../_base_/datasets/in100.py',
    '../_base_/views/detreg.py',
    '../_base_/schedules/adamw_steplr_50e_detreg.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(
    batch_size=24,
    collate_fn=dict(type='mmdense.pad_collate'),
    dataset=dict(pipeline=_base_.train_pipeline),
)
