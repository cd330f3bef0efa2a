# Sparse R-CNN R50-FPN 3x on COCO, 300 proposals, random crop, from a pretrained backbone:
# SyncBN in the backbone and the FPN. Augmentation and schedule are Sparse R-CNN's own.
_base_ = [
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
    '_base_/protocol.py',
]

model = dict(backbone=_base_.backbone, neck=dict(norm_cfg=_base_.sync_bn))
