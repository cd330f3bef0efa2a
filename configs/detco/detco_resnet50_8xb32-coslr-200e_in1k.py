_base_ = [
    '../_base_/models/detco_r50.py',
    '../_base_/datasets/in1k_detco.py',
    '../_base_/schedules/sgd_coslr_200e.py',
    '../_base_/default_runtime.py',
]
