# UperNet on CamVid's 11 classes from a pretrained backbone: mmseg's own UperNet for a ResNet,
# with an auxiliary head, not dilated, on a ResNet with a plain stem. Data and schedule are those
# of fcn_r50_camvid.py; none is a paper's.
_base_ = './fcn_r50_camvid.py'

head = dict(
    in_channels=[256, 512, 1024, 2048],
    num_classes=11,
    ignore_index=_base_.void,
    align_corners=False,
)
model = dict(
    backbone=dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1)),
    decode_head=dict(
        _delete_=True,
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        dropout_ratio=0.1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        **head,
    ),
    auxiliary_head=dict(
        _delete_=True,
        type='FCNHead',
        in_index=2,
        channels=256,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        **dict(head, in_channels=1024),
    ),
)
