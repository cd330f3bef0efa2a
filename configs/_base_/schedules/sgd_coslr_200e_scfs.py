_base_ = './sgd_coslr_100e_dino.py'

# SCFS's schedule, DINO's for 256 images a step at another learning rate.
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(eta_min=0.0048)
train_cfg = dict(max_epochs=200)
auto_scale_lr = dict(base_batch_size=256)
