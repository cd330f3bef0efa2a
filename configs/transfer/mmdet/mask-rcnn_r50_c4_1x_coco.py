# Mask R-CNN R50-C4 1x on COCO from a pretrained backbone: SyncBN in all four stages, one more
# after the last, and a PyTorch-style ResNet on RGB where mmdet's own config has Caffe's.
# The last stage is in the RoI head and is filled from the same file; name it in both places:
# --cfg-options model.backbone.init_cfg.checkpoint=... \
#     model.roi_head.shared_head.init_cfg.checkpoint=...
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py', '_base_/protocol.py']

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=_base_.backbone,
    roi_head=dict(
        shared_head=dict(
            type='mmdense.ResLayerExtraNorm',
            style='pytorch',
            norm_eval=False,
            norm_cfg=_base_.sync_bn,
            init_cfg=_base_.init_cfg,
        )
    ),
)

_base_.train_pipeline[2] = _base_.resize
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
