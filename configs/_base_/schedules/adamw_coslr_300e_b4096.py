# The schedule of MoCo v3's ViTs: AdamW, 40 epochs of warm-up from 0, then a cosine to 0, by
# iteration; weight decay on every parameter. lr is 1.5e-4 for each 256 images of the total batch.
# The schedule is as long as the run: for another length set max_epochs alone.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.4e-3, betas=(0.9, 0.999), weight_decay=0.1),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR', warmup=40, start_factor=0.0, eta_min=0.0, convert_to_iter_based=True
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
auto_scale_lr = dict(base_batch_size=4096)
