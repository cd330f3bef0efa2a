_base_ = './mocov3_resnet50_8xb512-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=1000)
model = dict(base_momentum=0.004)
# 0.3 for each 256 images
optim_wrapper = dict(optimizer=dict(lr=4.8, weight_decay=1.5e-6))
