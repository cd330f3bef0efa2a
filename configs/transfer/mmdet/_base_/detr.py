# A DETR from a pretrained detector: pre-norm as UP-DETR's, filled but for the class head. Layers
# 2 to 4 of the backbone train, BatchNorm stays (arXiv 2011.09094, section 4).
_base_ = './protocol.py'

checkpoint = '{{$CHECKPOINT:work_dirs/updetr_r50_in1k/epoch_60.pth}}'
detector = dict(
    type='mmdense.PreNormDETR',
    init_cfg=dict(type='mmdense.SelfSupPretrained', part='detector', checkpoint=checkpoint),
)
