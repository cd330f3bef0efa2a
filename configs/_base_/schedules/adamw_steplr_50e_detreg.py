# DETReg's schedule on COCO and ImageNet-100: a tenth of the learning rate after four fifths.
_base_ = './adamw_constantlr_5e_detreg.py'

param_scheduler = [dict(type='MultiStepShareLR', by_epoch=True, shares=[4 / 5], gamma=0.1)]
train_cfg = dict(max_epochs=50)
