# `make demo` runs this: minutes on two CPU cores, for a picture, not for transfer.
_base_ = [
    '../_base_/models/densecl_r50.py',
    '../_base_/views/mocov2.py',
    '../_base_/datasets/unlabeled.py',
    '../_base_/schedules/sgd_coslr_200e.py',
    '../_base_/default_runtime.py',
]

# A short run needs a short queue, which is full early, and a fast momentum encoder.
model = dict(
    queue_len=512,
    momentum=0.03,
    backbone=dict(depth=18),
    neck=dict(in_channels=512, hid_channels=512),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0][0]['scale'] = 96

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    dataset=dict(data_root='work_dirs/demo/photographs', pipeline=train_pipeline),
)

optim_wrapper = dict(optimizer=dict(lr=0.06))
train_cfg = dict(max_epochs=15)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1))
randomness = dict(seed=0)
# A random backbone matches locations by their place in the view, and training would learn that.
custom_hooks = [dict(type='LambdaWarmupHook', start_iters=120)]
