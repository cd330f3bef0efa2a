_base_ = './byol_resnet50_16xb256-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=300)
optim_wrapper = dict(optimizer=dict(lr=4.8))
