# Semantic segmentation without labels: SlotCon's prototypes as they are, on CamVid's test
# split. tools/test.py THIS CHECKPOINT, with model=... as it was trained where that is not
# the COCO recipe. Labels only tell which prototype is which class: see UnsupervisedIoU.
_base_ = [
    './slotcon_resnet50_8xb64-coslr-800e_coco.py',
    '../_base_/datasets/camvid.py',
]

# SelfSupDataPreprocessor normalises as in training, if images come stacked
test_dataloader = dict(collate_fn=dict(type='mmdense.default_collate'))
test_cfg = dict()
test_evaluator = [
    dict(type='UnsupervisedIoU', ignore_index=_base_.void, prefix='one_to_one'),
    dict(type='UnsupervisedIoU', ignore_index=_base_.void, many_to_one=True, prefix='many_to_one'),
]
