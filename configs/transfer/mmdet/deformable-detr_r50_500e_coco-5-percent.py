# The same as with 1 %: 5 % of COCO's images, 500 epochs.
_base_ = './deformable-detr_r50_2000e_coco-1-percent.py'

train_dataloader = dict(dataset=dict(share=0.05))
train_cfg = dict(max_epochs=500, val_interval=25)
default_hooks = dict(checkpoint=dict(interval=25))
