# A small Conditional DETR, 2 + 2 layers and 100 queries, on the 364 photographs of blood cells of
# BCCD: 6000 iterations of 4 images on one GPU, from a pretrained backbone. Detector, data set and
# schedule are no paper's; what Pair DETR is compared with.
_base_ = [
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    '_base_/protocol.py',
    '_base_/bccd.py',
]

dropout = dict(proj_drop=0.1)  # as the authors, and sync_cls_avg_factor; mmdet has neither
model = dict(
    type='mmdense.ConditionalDETR',
    num_queries=100,
    backbone=dict(init_cfg=_base_.init_cfg),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=dropout, cross_attn_cfg=dropout)),
    bbox_head=dict(num_classes=3, sync_cls_avg_factor=True),
)

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
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/val.txt',
        pipeline=_base_.test_pipeline,
        test_mode=True,
        **_base_.bccd,
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/test.txt',
        pipeline=_base_.test_pipeline,
        test_mode=True,
        **_base_.bccd,
    )
)
val_evaluator = dict(
    _delete_=True, type='VOCMetric', metric='mAP', eval_mode='area', **_base_.voc_ap
)
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6000, val_interval=1000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=6000, milestones=[4000], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))
log_processor = dict(by_epoch=False)
