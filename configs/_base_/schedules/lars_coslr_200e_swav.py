# SwAV's schedule for 256 images a step: LARS as apex's LARC without clipping, which adapts and
# decays all parameters, and a cosine by iteration to a thousandth of lr, without warm-up. The
# schedule is as long as the run: for another length set max_epochs alone. The published runs use
# mixed precision: tools/train.py --amp.
optim_wrapper = dict(
    type='OptimWrapper',
    # the prefix keeps mmpretrain's LARS out where another default scope is set
    optimizer=dict(type='mmdense.LARS', lr=0.6, momentum=0.9, weight_decay=1e-6, adapt_all=True),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min_ratio=0.001, by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200)
auto_scale_lr = dict(base_batch_size=256)
