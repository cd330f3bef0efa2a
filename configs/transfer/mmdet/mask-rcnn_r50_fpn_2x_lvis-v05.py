# Mask R-CNN R50-FPN 2x on LVIS v0.5 from a pretrained backbone: SyncBN in the backbone, the FPN and
# both heads, as mask-rcnn_r50_fpn_1x_coco.py. Classes, sampling and test are mmdet's own config's.
_base_ = ['mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py', '_base_/protocol.py']

model = dict(
    backbone=_base_.backbone,
    neck=dict(norm_cfg=_base_.sync_bn),
    roi_head=dict(bbox_head=_base_.box_head, mask_head=dict(norm_cfg=_base_.sync_bn)),
)
