# DINO's schedule for a ResNet-50, as in its readme: SGD, ten epochs of warm-up from 0, then a
# cosine by iteration. Biases and BatchNorms are not decayed. lr is 0.03 for each 256 images of the
# total batch, here 512. The schedule is as long as the run: for another length set max_epochs
# alone. The published runs use mixed precision: tools/train.py --amp.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.06, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=10,
        start_factor=0.0,
        eta_min=1e-6,
        reach_early=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)
auto_scale_lr = dict(base_batch_size=512)
