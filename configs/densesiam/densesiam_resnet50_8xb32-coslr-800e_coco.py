# DenseSiam's ImageNet recipe on COCO, which is ours; the length is DenseCL's on COCO.
_base_ = [
    '../_base_/models/densesiam_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/coco.py',
    '../_base_/schedules/sgd_coslr_100e_simsiam.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=32, dataset=dict(pipeline=_base_.train_pipeline))
train_cfg = dict(max_epochs=800)
default_hooks = dict(
    checkpoint=dict(interval=50),
    # the predictors' learning rate: another batch size needs another lr here too
    predictor_lr=dict(type='mmpretrain.SimSiamHook', fix_pred_lr=True, lr=0.05),
)
