_base_ = [
    '../_base_/models/slotcon_r50.py',
    '../_base_/views/slotcon.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/lars_coslr_100e_b512.py',
    '../_base_/default_runtime.py',
]

model = dict(num_prototypes=2048)
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=_base_.train_pipeline))
