# Pair DETR on COCO by Conditional DETR's schedule of 50 epochs; Pair DETR's own is not known. With
# custom_imports it runs under mmdet's tools too.
_base_ = [
    '../_base_/models/pairdetr_r50.py',
    '../_base_/datasets/coco_boxes.py',
    '../_base_/views/detr.py',
    '../_base_/schedules/adamw_steplr_50e_detr.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmdense'], allow_failed_imports=False)

train_dataloader = dict(dataset=dict(dataset=dict(pipeline=_base_.train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
