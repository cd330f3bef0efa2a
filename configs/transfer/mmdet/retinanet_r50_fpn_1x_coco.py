# RetinaNet R50-FPN 1x on COCO from a pretrained backbone: SyncBN in the backbone and the FPN,
# its two extra levels among them; none in the heads, which all levels share.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '_base_/protocol.py']

model = dict(backbone=_base_.backbone, neck=dict(norm_cfg=_base_.sync_bn))

_base_.train_pipeline[2] = _base_.resize
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
