# COCO train2017 and val2017 with their boxes, read by mmdet. A recipe adds the pipelines:
# train_dataloader = dict(dataset=dict(dataset=dict(pipeline=_base_.train_pipeline)))
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    drop_last=True,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    # seeds the pipeline by the place in the run
    dataset=dict(
        type='SeededDataset',
        dataset=dict(
            type='mmdet.CocoDataset',
            data_root='data/coco',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    drop_last=False,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='mmdet.CocoDataset',
        data_root='data/coco',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        test_mode=True,
    ),
)
val_evaluator = dict(
    type='mmdet.CocoMetric',
    ann_file='data/coco/annotations/instances_val2017.json',
    metric='bbox',
)
val_cfg = dict(type='ValLoop')
