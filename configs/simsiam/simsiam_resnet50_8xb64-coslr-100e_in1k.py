_base_ = './simsiam_resnet50_8xb32-coslr-100e_in1k.py'

# the paper's batch of 512; both learning rates are linear in it
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.1))
default_hooks = dict(predictor_lr=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=512)
