# Pair DETR: a Conditional DETR as its authors train it, and a second decoder of the same form. The
# detector is that of mmdet's config, with two things that the authors have and mmdet has not:
# dropout after an attention's last projection, and a class loss that is divided by the number of
# objects of all processes.
_base_ = './r50.py'

encoder_attention = dict(embed_dims=256, num_heads=8, dropout=0.1, batch_first=True)
decoder_attention = dict(embed_dims=256, num_heads=8, attn_drop=0.1, proj_drop=0.1)
feedforward = dict(
    embed_dims=256,
    feedforward_channels=2048,
    num_fcs=2,
    ffn_drop=0.1,
    act_cfg=dict(type='ReLU', inplace=True),
)

model = dict(
    type='PairDETR',
    temperature=0.1,
    contrastive_weight=1.0,
    data_preprocessor=dict(
        _delete_=True,
        type='mmdet.DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    # layer2 to layer4 train, BatchNorm stays
    backbone=dict(
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    detector=dict(
        type='mmdense.ConditionalDETR',
        num_queries=300,
        # its in_channels are those of the backbone's last map
        neck=dict(
            type='ChannelMapper',
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            norm_cfg=None,
            num_outs=1,
        ),
        encoder=dict(
            num_layers=6,
            layer_cfg=dict(self_attn_cfg=encoder_attention, ffn_cfg=feedforward),
        ),
        decoder=dict(
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(cross_attn=False, **decoder_attention),
                cross_attn_cfg=dict(cross_attn=True, **decoder_attention),
                ffn_cfg=feedforward,
            ),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        bbox_head=dict(
            type='ConditionalDETRHead',
            num_classes=80,
            embed_dims=256,
            sync_cls_avg_factor=True,
            loss_cls=dict(
                type='FocalLoss',
                use_sigmoid=True,
                gamma=2.0,
                alpha=0.25,
                loss_weight=2.0,
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type='FocalLossCost', weight=2.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=100),
    ),
)
