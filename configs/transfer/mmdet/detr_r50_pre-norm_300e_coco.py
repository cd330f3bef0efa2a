# DETR R50 on COCO, 300 epochs, from a pretrained detector: UP-DETR's protocol. The learning rate is
# a tenth after 200 epochs, that of the backbone is half of the transformer's.
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', '_base_/detr.py']

model = dict(**_base_.detector)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
train_cfg = dict(max_epochs=300)
param_scheduler = [dict(_base_.param_scheduler[0], end=300, milestones=[200])]
