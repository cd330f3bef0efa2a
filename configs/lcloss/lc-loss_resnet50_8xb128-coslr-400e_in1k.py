_base_ = './lc-loss_resnet50_8xb128-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=400)
