_base_ = './swav_resnet50_8xb32-mcrop-coslr-200e_in1k.py'

train_cfg = dict(max_epochs=400)
