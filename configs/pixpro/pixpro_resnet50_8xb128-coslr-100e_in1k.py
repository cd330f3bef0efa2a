_base_ = [
    '../_base_/models/pixpro_r50.py',
    '../_base_/datasets/in1k_byol.py',
    '../_base_/schedules/lars_coslr_100e.py',
    '../_base_/default_runtime.py',
]
