# Mask R-CNN on COCO from a pretrained ViT-B, under ViTDet's protocol (arXiv 2203.16527, appendix
# A.2): windows of 14 patches in all but four blocks, relative positions that begin at 0, a simple
# feature pyramid, LayerNorm in neck and heads, images of 1024 px by large-scale jitter, 100 epochs
# of 64 images, AdamW whose learning rate falls by 0.7 from block to block. mmdet has these parts
# only in a project that its packages leave out.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::common/lsj-100e_coco-instance.py',
    '../_base_/checkpoint.py',
]

layer_norm = dict(type='mmpretrain.LN2d')
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),  # square, for training and test
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ViTSAM',
        arch='base',
        img_size=1024,
        patch_size=16,
        window_size=14,
        drop_path_rate=0.1,
        out_type='featmap',
        out_channels=0,  # no neck of SAM's
        init_cfg=_base_.init_cfg,
    ),
    neck=dict(_delete_=True, type='mmdense.SimpleFeaturePyramid', in_channels=768),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=layer_norm),
        mask_head=dict(norm_cfg=layer_norm),
    ),
)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    constructor='mmdense.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), rel_pos=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    # 88.9 % and 96.3 % of the run
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=25, milestones=[22, 24], gamma=0.1),
]
