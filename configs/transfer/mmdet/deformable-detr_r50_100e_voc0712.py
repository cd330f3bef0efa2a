# Deformable DETR R50 on VOC 2007 + 2012 trainval, tested on VOC 2007: 100 epochs of 8 × 4 images,
# from a pretrained detector, by DETReg's protocol. DETReg also learns the objects that are marked
# as difficult, which mmdet leaves out.
_base_ = './deformable-detr_r50_50e_coco.py'

voc = dict(type='VOCDataset', _scope_='mmdet', data_root='data/VOCdevkit/')
years = [
    dict(
        ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=_base_.train_pipeline,
        **voc,
    )
    for year in (2007, 2012)
]
test = dict(
    _delete_=True,
    ann_file='VOC2007/ImageSets/Main/test.txt',
    data_prefix=dict(sub_data_root='VOC2007/'),
    pipeline=_base_.test_pipeline,
    test_mode=True,
    **voc,
)

model = dict(bbox_head=dict(num_classes=20))
# Without ignore_keys MMEngine refuses to join the two years.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        _scope_='mmdet',
        ignore_keys=['dataset_type'],
        datasets=years,
    )
)
val_dataloader = dict(dataset=test)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type='VOCMetric', metric='mAP', eval_mode='11points', **_base_.voc_ap
)
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=100)
_base_.param_scheduler[0].update(end=100, milestones=[70])
