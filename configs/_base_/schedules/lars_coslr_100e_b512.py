_base_ = './lars_coslr_100e.py'

# SlotCon's total batch
optim_wrapper = dict(optimizer=dict(lr=2.0))
auto_scale_lr = dict(base_batch_size=512)
