# UP-DETR's published recipe, from a SwAV ResNet-50 of 800 epochs: model.pretrained names its file.
_base_ = [
    '../_base_/models/updetr_r50.py',
    '../_base_/datasets/in1k.py',
    '../_base_/views/updetr.py',
    '../_base_/schedules/adamw_steplr_60e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(
    batch_size=32,
    collate_fn=dict(type='mmdense.pad_collate'),
    dataset=dict(pipeline=_base_.train_pipeline),
)
