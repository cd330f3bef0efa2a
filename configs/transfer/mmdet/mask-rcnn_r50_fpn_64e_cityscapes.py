# Mask R-CNN R50-FPN on Cityscapes' instances from a pretrained backbone, 64 epochs of 8 images:
# SyncBN in the backbone, the FPN and both heads, as mask-rcnn_r50_fpn_1x_coco.py. mmdet's own
# config starts from a detector for COCO, this one does not.
_base_ = ['mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py', '_base_/protocol.py']

model = dict(
    backbone=dict(_base_.backbone, init_cfg=dict(_base_.init_cfg, _delete_=True)),
    neck=dict(norm_cfg=_base_.sync_bn),
    roi_head=dict(bbox_head=_base_.box_head, mask_head=dict(norm_cfg=_base_.sync_bn)),
)
load_from = None
auto_scale_lr = dict(base_batch_size=8)
