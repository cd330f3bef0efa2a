# The same as with 1 %: 10 % of COCO's images, 400 epochs.
_base_ = './deformable-detr_r50_2000e_coco-1-percent.py'

train_dataloader = dict(dataset=dict(share=0.1))
train_cfg = dict(max_epochs=400, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=20))
