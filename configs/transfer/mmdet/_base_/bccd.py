# BCCD in Pascal VOC's layout, without a split: a config adds ann_file and pipeline.
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
