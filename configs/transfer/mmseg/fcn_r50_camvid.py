# FCN on CamVid's 11 classes from a pretrained backbone, under DenseCL's protocol:
# R50 dilated to stride 16, plain stem, all BatchNorm trained and synchronised,
# nothing frozen; two convolutions of 256 with dilation 6, no auxiliary head.
# _scope_ keeps the types mmseg's where another project inherits this as 'mmdense::…'.
# Importing mmdense first lets MMEngine find mmseg's configs in both distributions of OpenMMLab.
_base_ = __import__('mmdense') and [
    'mmseg::_base_/models/fcn_r50-d8.py',
    'mmseg::_base_/schedules/schedule_20k.py',
    'mmseg::_base_/default_runtime.py',
    '../../_base_/datasets/camvid.py',
    '_base_/protocol.py',
]

crop_size = (360, 480)
void = _base_.void

model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=void),
    **_base_.fcn_d16,
)
model['decode_head'].update(num_classes=11, ignore_index=void)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75, ignore_index=void),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        pipeline=train_pipeline,
        **_base_.camvid,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'),
        pipeline=_base_.test_pipeline,
        **_base_.camvid,
    ),
)
val_evaluator = dict(type='IoUMetric', _scope_='mmseg', iou_metrics=['mIoU'], ignore_index=void)
test_evaluator = val_evaluator
