_base_ = './lars_coslr_200e_swav.py'

# SwAV's schedule for 4096 images a step: ten epochs of warm-up from 0.3, then the cosine.
optim_wrapper = dict(optimizer=dict(lr=4.8))
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=10,
        start_factor=0.0625,
        eta_min=0.0048,
        reach_early=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=4096)
