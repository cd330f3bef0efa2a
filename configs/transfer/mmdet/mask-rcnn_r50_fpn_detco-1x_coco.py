# Mask R-CNN R50-FPN under DetCo's protocol: SyncBN in the backbone and the FPN alone, and
# mmdet's own heads, the box head of two linear layers among them.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '_base_/protocol.py']

model = dict(backbone=_base_.backbone, neck=dict(norm_cfg=_base_.sync_bn))

_base_.train_pipeline[2] = _base_.resize
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
