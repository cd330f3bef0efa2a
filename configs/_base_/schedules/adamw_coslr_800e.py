# MAE's schedule: AdamW with 40 epochs of warm-up from 0, then a cosine to 0, by iteration. Weight
# decay leaves out biases and LayerNorms, whose parameters have one dimension; it takes the class
# token and the mask token. lr is 1.5e-4 for each 256 images of the total batch, here 4096. The
# schedule is as long as the run: for another length set max_epochs alone. The published runs use
# mixed precision: tools/train.py --amp.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR', warmup=40, start_factor=0.0, eta_min=0.0, convert_to_iter_based=True
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)
auto_scale_lr = dict(base_batch_size=4096)
