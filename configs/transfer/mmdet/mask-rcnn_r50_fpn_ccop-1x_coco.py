# Mask R-CNN R50-FPN 1x on COCO from a checkpoint of a complete CCOP, whose FPN fills the
# detector's. The protocol is that of mask-rcnn_r50_fpn_1x_coco.py.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

model = dict(neck=dict(init_cfg=dict(_base_.init_cfg, prefix='neck')))
