# Deformable DETR R50 on the 364 photographs of blood cells of BCCD (Pascal VOC's layout), tested on
# its test split: 6000 iterations of 4 images on one GPU, from a pretrained detector. The data set
# and its schedule are no paper's; detector, views and optimizer are DETReg's for COCO.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '_base_/deformable_detr.py',
    '_base_/bccd.py',
]

model = dict(bbox_head=dict(num_classes=3), **_base_.detector)

train_dataloader = dict(
    dataset=dict(_delete_=True, pipeline=_base_.train_pipeline, **_base_.bccd_train),
    **_base_.bccd_loader,
)
val_dataloader = dict(dataset=dict(_delete_=True, pipeline=_base_.test_pipeline, **_base_.bccd_val))
test_dataloader = dict(
    dataset=dict(_delete_=True, pipeline=_base_.test_pipeline, **_base_.bccd_test)
)
val_evaluator = dict(_delete_=True, **_base_.bccd_metric, **_base_.voc_ap)
test_evaluator = val_evaluator

train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6000, val_interval=1000)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=6000, milestones=[4800], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=2.5e-5))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))
log_processor = dict(by_epoch=False)
