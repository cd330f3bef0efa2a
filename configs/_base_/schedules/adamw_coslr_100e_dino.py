_base_ = './sgd_coslr_100e_dino.py'

# DINO's schedule for vision transformers: AdamW, whose weight decay rises from 0.04 to 0.4 along a
# cosine; biases and LayerNorms are not decayed. lr is 5e-4 for each 256 images of the total batch,
# here 512.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.04))
param_scheduler = [
    *_base_.param_scheduler,
    dict(
        type='CosineAnnealingParamScheduler',
        param_name='weight_decay',
        eta_min_ratio=10.0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
