# Feature distillation's schedule (arXiv 2205.14141; released code, configs/pretrain): AdamW, 10
# epochs of warm-up, then a cosine, by iteration. lr is 3e-4 for each 512 images of the total batch,
# here 1024; it ends at 0, there at 5e-6 for each 512. Weight decay leaves out biases and norms, as
# there. Gradients are not clipped, which that code does at norm 3: here the norm is below 1. The
# schedule is as long as the run: for another length set max_epochs alone.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR', warmup=10, start_factor=0.0, eta_min=0.0, convert_to_iter_based=True
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
auto_scale_lr = dict(base_batch_size=1024)
