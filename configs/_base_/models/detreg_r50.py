# DETReg: mmdet's Deformable DETR with 91 classes of which one is used, a frozen backbone, and a
# frozen network that embeds crops: the first two stages of the same backbone. Both start from a
# checkpoint: --cfg-options model.pretrained=FILE
_base_ = './r50.py'

sampled = dict(
    embed_dims=256, num_heads=8, num_levels=4, num_points=4, dropout=0.1, batch_first=True
)
attention = dict(embed_dims=256, num_heads=8, dropout=0.1, batch_first=True)
feedforward = dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1)

model = dict(
    type='DETReg',
    num_proposals=30,
    label=1,  # as in the authors' files
    pretrained=None,
    # frozen by the algorithm; a detector's fine-tuning trains layer2 to layer4
    backbone=dict(out_indices=(1, 2, 3), norm_cfg=dict(type='BN')),
    detector=dict(
        type='mmdense.DeformableDETR',
        num_queries=300,
        num_feature_levels=4,
        with_box_refine=False,
        as_two_stage=False,
        # its in_channels are those of the backbone's maps; the authors' projections have a bias
        neck=dict(
            type='ChannelMapper',
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            bias=True,
            norm_cfg=dict(type='GN', num_groups=32),
            num_outs=4,
        ),
        encoder=dict(
            num_layers=6,
            layer_cfg=dict(self_attn_cfg=sampled, ffn_cfg=feedforward),
        ),
        decoder=dict(
            num_layers=6,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=sampled,
                ffn_cfg=feedforward,
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5),
        bbox_head=dict(
            type='DeformableDETRHead',
            num_classes=91,
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
