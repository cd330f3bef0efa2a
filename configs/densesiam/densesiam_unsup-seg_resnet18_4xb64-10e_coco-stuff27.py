# Segmentation without labels, as the authors' config; tools/test.py evaluates the groups.
_base_ = [
    '../_base_/models/densesiam_unsup-seg_r18.py',
    '../_base_/views/densesiam_unsup-seg.py',
    '../_base_/datasets/coco-stuff27.py',
    '../_base_/schedules/sgd_constantlr_10e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=_base_.train_pipeline))
custom_hooks = [dict(type='RegionWarmupHook', epochs=8)]  # of 10
default_hooks = dict(checkpoint=dict(interval=1))

test_cfg = dict()
test_evaluator = [
    dict(type='UnsupervisedIoU', prefix='one_to_one'),
    # a class that never occurs counts as IoU 0 where its group does, as in the authors' code
    dict(type='UnsupervisedIoU', count_absent=True, prefix='published_counting'),
]
