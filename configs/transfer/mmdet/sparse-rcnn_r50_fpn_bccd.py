# Sparse R-CNN R50-FPN on the 364 photographs of blood cells of BCCD (Pascal VOC's layout), tested
# on its test split: 3000 iterations of 4 images on one GPU. The data set and its schedule are no
# paper's; the detector is that of sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py.
_base_ = ['./sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py', '_base_/bccd.py']

for head in _base_.model.roi_head.bbox_head:
    head.num_classes = 3

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

train_cfg = dict(_delete_=True, **_base_.bccd_loop)
param_scheduler = _base_.bccd_schedule
optim_wrapper = dict(optimizer=dict(lr=2.5e-5))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500))
log_processor = dict(by_epoch=False)
