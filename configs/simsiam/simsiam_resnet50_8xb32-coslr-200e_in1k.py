_base_ = './simsiam_resnet50_8xb32-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=200)
