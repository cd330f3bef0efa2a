# A small Conditional DETR, 2 + 2 layers and 100 queries, on the 364 photographs of blood cells of
# BCCD: 6000 iterations of 4 images on one GPU, from a pretrained backbone. Detector, data set and
# schedule are no paper's; what Pair DETR is compared with.
_base_ = [
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    '_base_/protocol.py',
    '_base_/bccd.py',
]

dropout = dict(proj_drop=0.1)  # as the authors, and sync_cls_avg_factor; mmdet has neither
model = dict(
    type='mmdense.ConditionalDETR',
    num_queries=100,
    backbone=dict(init_cfg=_base_.init_cfg),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=dropout, cross_attn_cfg=dropout)),
    bbox_head=dict(num_classes=3, sync_cls_avg_factor=True),
)

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
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=6000, milestones=[4000], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000))
log_processor = dict(by_epoch=False)
