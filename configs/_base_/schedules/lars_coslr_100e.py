# PixPro's and SlotCon's schedule: LARS with 5 epochs of warm-up, then a cosine, by iteration. LARS
# itself leaves biases and norm layers without decay and adaptation: no paramwise_cfg is needed.
# lr is 1.0 for each 256 images of the total batch, here PixPro's 1024. The schedule is as long as
# the run: for another length set max_epochs alone. The published runs use mixed precision:
# tools/train.py --amp.
optim_wrapper = dict(
    type='OptimWrapper',
    # the prefix keeps mmpretrain's LARS out where another default scope is set
    optimizer=dict(type='mmdense.LARS', lr=4.0, momentum=0.9, weight_decay=1e-5),
)
param_scheduler = [
    dict(
        type='WarmupCosineLR', warmup=5, start_factor=0.01, eta_min=1e-6, convert_to_iter_based=True
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)
auto_scale_lr = dict(base_batch_size=1024)
