_base_ = './byol_resnet50_16xb256-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=1000)
model = dict(base_momentum=0.004)
optim_wrapper = dict(optimizer=dict(lr=3.2, weight_decay=1.5e-6))
