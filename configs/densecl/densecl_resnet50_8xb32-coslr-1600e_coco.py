_base_ = './densecl_resnet50_8xb32-coslr-800e_coco.py'

param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=1600, begin=0, end=1600)]
train_cfg = dict(max_epochs=1600)
