# Segmentation of CamVid without labels: as many groups as classes, 11. The images are 360 px high,
# so the square has 384 px instead of 640 and the views 192. ONE process of 16 images; no
# ImageNet weights: give a backbone's file as model.pretrained. All of this is ours.
# Evaluation on the test split: tools/test.py THIS_FILE CHECKPOINT.
_base_ = [
    '../_base_/models/densesiam_unsup-seg_r18.py',
    '../_base_/views/densesiam_unsup-seg.py',
    '../_base_/datasets/unlabeled.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/sgd_constantlr_10e.py',
    '../_base_/default_runtime.py',
]

classes = 11
model = dict(
    backbone=dict(init_cfg=None),
    neck=dict(out_channels=classes),
    predictor=dict(in_channels=classes, out_channels=classes),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=384)
train_pipeline[2].update(crop_size=384)
for _view in train_pipeline[3]['transforms']:
    _view[6].update(scale=192)

train_dataloader = dict(
    batch_size=16,
    dataset=dict(data_root='data/camvid', data_prefix='img_dir/train', pipeline=train_pipeline),
)
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.003125))  # 0.05 · 16 / 256
custom_hooks = [dict(type='RegionWarmupHook', epochs=40)]  # as 8 of 10

# images of the size of the second view, as in the authors' code; labels keep theirs
test_pipeline = _base_.test_pipeline
test_pipeline.insert(1, dict(type='Resize', scale=(2048, 192), keep_ratio=True))
# stacks the images, so that SelfSupDataPreprocessor normalises them as in training
test_dataloader = dict(
    collate_fn=dict(type='mmdense.default_collate'), dataset=dict(pipeline=test_pipeline)
)
test_cfg = dict()
test_evaluator = [
    dict(type='UnsupervisedIoU', ignore_index=_base_.void, prefix='one_to_one'),
    dict(
        type='UnsupervisedIoU',
        ignore_index=_base_.void,
        count_absent=True,
        prefix='published_counting',
    ),
]
