# Ours: SimSiam's recipe, as long as RegionCL-M's.
_base_ = [
    '../_base_/models/regioncls_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/in1k.py',
    '../_base_/schedules/sgd_coslr_100e_simsiam.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=200)
# the predictor's learning rate: another batch size needs another lr here too
default_hooks = dict(predictor_lr=dict(type='mmpretrain.SimSiamHook', fix_pred_lr=True, lr=0.05))
