# Mask R-CNN R50-C4 1x on COCO from a pretrained backbone: SyncBN in all four stages, one more
# after the last, and a PyTorch-style ResNet on RGB where mmdet's own config has Caffe's.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py', '_base_/protocol.py']

model = _base_.c4

_base_.train_pipeline[2] = _base_.resize
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline), **_base_.precise_bn_loader)
custom_hooks = [dict(interval=12, **_base_.precise_bn)]
