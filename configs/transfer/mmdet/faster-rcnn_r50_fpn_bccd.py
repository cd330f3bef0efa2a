# Faster R-CNN R50-FPN on the 364 photographs of blood cells of BCCD (Pascal VOC's layout),
# tested on its test split: 3000 iterations of 4 images on one GPU. The data set and its schedule
# are no paper's; the detector is under the papers' protocol.
_base_ = [
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    '_base_/protocol.py',
    '_base_/bccd.py',
]

model = dict(
    backbone=_base_.backbone,
    neck=dict(norm_cfg=_base_.sync_bn),
    roi_head=dict(bbox_head=dict(num_classes=3, **_base_.box_head)),
)

_base_.train_pipeline[2] = _base_.resize
_base_.test_pipeline[1].scale = (1333, 800)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/train.txt',
        filter_cfg=dict(bbox_min_size=1),  # one box has no area: its loss would be NaN
        pipeline=_base_.train_pipeline,
        **_base_.bccd,
    ),
)
val_dataloader = dict(
    dataset=dict(ann_file='ImageSets/Main/val.txt', pipeline=_base_.test_pipeline, **_base_.bccd)
)
test_dataloader = dict(
    dataset=dict(ann_file='ImageSets/Main/test.txt', pipeline=_base_.test_pipeline, **_base_.bccd)
)
val_evaluator = dict(eval_mode='area', **_base_.voc_ap)
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3000, val_interval=500)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=3000, milestones=[2250, 2750], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=0.005))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500))
log_processor = dict(by_epoch=False)
