# UP-DETR: mmdet's DETR with a pre-norm transformer and two classes, and a frozen backbone. The
# backbone starts from a checkpoint: --cfg-options model.pretrained=FILE
_base_ = './r50.py'

attention = dict(embed_dims=256, num_heads=8, dropout=0.1, batch_first=True)
feedforward = dict(
    embed_dims=256,
    feedforward_channels=2048,
    num_fcs=2,
    ffn_drop=0.1,
    act_cfg=dict(type='ReLU', inplace=True),
)

model = dict(
    type='UPDETR',
    num_patches=10,
    mask_ratio=0.1,
    pretrained=None,
    # frozen by the algorithm; a detector's fine-tuning trains layer2 to layer4
    backbone=dict(norm_cfg=dict(type='BN')),
    detector=dict(
        type='mmdense.PreNormDETR',
        num_queries=100,
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
            layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feedforward),
        ),
        decoder=dict(
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=feedforward,
            ),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=128, normalize=True),
        bbox_head=dict(
            type='DETRHead',
            num_classes=2,  # 1: a patch; 0 is not used
            embed_dims=256,
            loss_cls=dict(
                type='CrossEntropyLoss',
                bg_cls_weight=0.1,
                use_sigmoid=False,
                loss_weight=1.0,
                class_weight=1.0,
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type='ClassificationCost', weight=1.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=100),
    ),
)
