# Ours: the recipe of 800 epochs, a quarter as long.
_base_ = './ccop_resnet50_8xb32-coslr-800e_coco.py'

train_cfg = dict(max_epochs=200)
default_hooks = dict(checkpoint=dict(interval=10))
