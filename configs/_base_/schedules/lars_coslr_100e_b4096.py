_base_ = './lars_coslr_100e.py'

# The schedule of SimCLR, BYOL and MoCo v3: LARS, 10 epochs of warm-up from 0, a cosine to 0. A
# recipe sets lr, which is linear in the batch.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-6))
param_scheduler = [
    dict(
        type='WarmupCosineLR', warmup=10, start_factor=0.0, eta_min=0.0, convert_to_iter_based=True
    )
]
auto_scale_lr = dict(base_batch_size=4096)
