# Ours: SimSiam's recipe on COCO; the length is DenseCL's on COCO.
_base_ = './regioncl_s-resnet50_8xb32-coslr-200e_in1k.py'

train_dataloader = dict(dataset=dict(data_root='data/coco', data_prefix='train2017'))
train_cfg = dict(max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=50))
