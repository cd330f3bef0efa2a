# Mask R-CNN R50-FPN 1x on COCO from a pretrained backbone, under the protocol of
# DenseCL, PixPro and SlotCon: SyncBN in the backbone, the FPN and both heads, and a box
# head of four convolutions and one linear layer. The rest is mmdet's own config.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '_base_/protocol.py']

model = dict(
    backbone=_base_.backbone,
    neck=dict(norm_cfg=_base_.sync_bn),
    roi_head=dict(bbox_head=_base_.box_head, mask_head=dict(norm_cfg=_base_.sync_bn)),
)

_base_.train_pipeline[2] = _base_.resize
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
