_base_ = './scfs_resnet50_8xb32-coslr-200e_in1k.py'

optim_wrapper = dict(optimizer=dict(lr=0.4))
train_dataloader = dict(batch_size=128)
train_cfg = dict(max_epochs=800)
auto_scale_lr = dict(base_batch_size=1024)
