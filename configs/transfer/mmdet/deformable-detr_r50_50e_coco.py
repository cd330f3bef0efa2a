# Deformable DETR R50 on COCO, 50 epochs of 8 × 4 images, from a pretrained detector: DETReg's
# protocol, with the learning rates of mmdet's config.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '_base_/deformable_detr.py',
]

model = dict(**_base_.detector)
train_dataloader = dict(batch_size=4)
