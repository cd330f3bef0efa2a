# The same as with 1 %: 2 % of COCO's images, 1000 epochs.
_base_ = './deformable-detr_r50_2000e_coco-1-percent.py'

train_dataloader = dict(dataset=dict(share=0.02))
train_cfg = dict(max_epochs=1000, val_interval=50)
default_hooks = dict(checkpoint=dict(interval=50))
