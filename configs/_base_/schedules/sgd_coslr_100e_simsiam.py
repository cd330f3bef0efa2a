_base_ = './sgd_coslr_200e.py'

# SimSiam's schedule: MoCo v2's at another learning rate. fix_lr marks the predictor, whose learning
# rate is constant: a recipe adds mmpretrain's SimSiamHook, which restores it before each epoch.
optim_wrapper = dict(
    optimizer=dict(lr=0.05), paramwise_cfg=dict(custom_keys=dict(predictor=dict(fix_lr=True)))
)
train_cfg = dict(max_epochs=100)
