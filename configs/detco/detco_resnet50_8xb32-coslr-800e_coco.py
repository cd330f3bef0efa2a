# DetCo's recipe on COCO; length and learning rate are DenseCL's on COCO.
_base_ = [
    '../_base_/models/detco_r50.py',
    '../_base_/datasets/coco_detco.py',
    '../_base_/schedules/sgd_coslr_200e.py',
    '../_base_/default_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.3))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=800, begin=0, end=800)]
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
