_base_ = './simclr_resnet50_16xb256-coslr-100e_in1k.py'

train_cfg = dict(max_epochs=800)
