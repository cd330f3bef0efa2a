# DETReg on a DETR with a pre-norm transformer: that of UP-DETR but for the classes and the offset
# of positions, which is Deformable DETR's.
_base_ = './updetr_r50.py'

model = dict(
    _delete_=True,
    type='DETReg',
    num_proposals=30,
    label=1,  # as in the authors' files
    pretrained=None,
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=_base_.model.backbone,
    detector=dict(
        _base_.model.detector,
        positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5),
        bbox_head=dict(
            _base_.model.detector.bbox_head,
            num_classes=91,
            sync_cls_avg_factor=True,
        ),
    ),
)
