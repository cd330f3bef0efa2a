# Semantic segmentation without labels: the prototypes of a SlotCon checkpoint on CamVid's test
# split, by tools/test.py THIS_FILE CHECKPOINT. Where the checkpoint is not of the COCO recipe, set
# model=... as in its training. Labels only assign prototypes to classes: see UnsupervisedIoU.
_base_ = [
    './slotcon_resnet50_8xb64-coslr-800e_coco.py',
    '../_base_/datasets/camvid.py',
]

# stacks the images, so that SelfSupDataPreprocessor normalises them as in training
test_dataloader = dict(collate_fn=dict(type='mmdense.default_collate'))
test_cfg = dict()
test_evaluator = [
    dict(type='UnsupervisedIoU', ignore_index=_base_.void, prefix='one_to_one'),
    dict(type='UnsupervisedIoU', ignore_index=_base_.void, many_to_one=True, prefix='many_to_one'),
]
