# A Deformable DETR from a pretrained detector, filled but for the class head. Its projections have
# a bias, as the authors'. Layers 2 to 4 of the backbone train, BatchNorm stays (arXiv 2106.04550).
_base_ = './protocol.py'

checkpoint = '{{$CHECKPOINT:work_dirs/detreg_r50_in1k/epoch_5.pth}}'
detector = dict(
    type='mmdense.DeformableDETR',
    neck=dict(bias=True),
    init_cfg=dict(type='mmdense.SelfSupPretrained', part='detector', checkpoint=checkpoint),
)
