# DetCo's recipe on COCO; length and learning rate are DenseCL's on COCO.
_base_ = [
    '../_base_/models/detco_r50.py',
    '../_base_/datasets/coco_detco.py',
    '../_base_/schedules/sgd_coslr_800e.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(checkpoint=dict(interval=50))
