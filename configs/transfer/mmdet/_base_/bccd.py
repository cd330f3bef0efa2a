# BCCD in Pascal VOC's layout, read by configs as _base_.bccd_train…: a config adds the pipelines.
# Its splits, loader, schedule and measure are no paper's.
bccd = dict(
    type='VOCDataset',
    # keeps the type mmdet's where another project inherits a config as 'mmdense::…'
    _scope_='mmdet',
    data_root='data/bccd/',
    data_prefix=dict(sub_data_root=''),
    metainfo=dict(
        classes=('RBC', 'WBC', 'Platelets'),
        palette=[(220, 20, 60), (0, 0, 142), (119, 200, 32)],
    ),
)
bccd_train = dict(
    ann_file='ImageSets/Main/train.txt',
    filter_cfg=dict(bbox_min_size=1),  # one box has no area: its loss would be NaN
    **bccd,
)
bccd_val = dict(ann_file='ImageSets/Main/val.txt', test_mode=True, **bccd)
bccd_test = dict(ann_file='ImageSets/Main/test.txt', test_mode=True, **bccd)
bccd_loader = dict(
    batch_size=4, sampler=dict(type='InfiniteSampler', shuffle=True), batch_sampler=None
)
bccd_metric = dict(type='VOCMetric', metric='mAP', eval_mode='area')

# 3000 iterations of 4 images on one GPU
bccd_loop = dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=500)
bccd_schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=3000, milestones=[2250, 2750], gamma=0.1),
]
