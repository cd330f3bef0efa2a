_base_ = './mocov3_resnet50_8xb512-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=300)
# 0.3 for each 256 images
optim_wrapper = dict(optimizer=dict(lr=4.8))
