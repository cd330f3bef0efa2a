_base_ = './swav_resnet50_64xb64-mcrop-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=200)
