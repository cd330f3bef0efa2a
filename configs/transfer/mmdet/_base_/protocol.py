# The changes of all detectors here to mmdet's own configs, which read them as _base_.backbone…:
# PyTorch-style ResNet from a pretrained backbone, all BatchNorm trained and synchronised,
# nothing frozen; short side 640 to 800.
_base_ = '../../_base_/checkpoint.py'

sync_bn = dict(type='SyncBN', requires_grad=True)
backbone = dict(
    style='pytorch',
    frozen_stages=-1,
    norm_eval=False,
    norm_cfg=sync_bn,
    init_cfg=_base_.init_cfg,
)
box_head = dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=sync_bn)
resize = dict(
    type='RandomChoiceResize',
    scales=[(1333, side) for side in (640, 672, 704, 736, 768, 800)],
    keep_ratio=True,
)

# VOC's measure at COCO's ten IoUs.
voc_ap = dict(iou_thrs=[iou / 100 for iou in range(50, 100, 5)])

# C4: mmdet has Caffe's ResNet on BGR. The last stage is in the RoI head, with one more norm
# after it, and is filled from the same file.
c4 = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=backbone,
    roi_head=dict(
        shared_head=dict(
            type='mmdense.ResLayerExtraNorm',
            style='pytorch',
            norm_eval=False,
            norm_cfg=sync_bn,
            init_cfg=_base_.init_cfg,
        )
    ),
)

# Published C4 detectors have exact statistics of their BatchNorm before the test: at the end of
# training, over 200 steps' images. The hook needs a loader that knows its batch size, and mmdet's
# by aspect ratio does not; persistent workers would leave it none of an InfiniteSampler's batches.
precise_bn = dict(type='mmpretrain.PreciseBNHook', num_samples=200 * 16)
precise_bn_loader = dict(batch_sampler=None, persistent_workers=False)
