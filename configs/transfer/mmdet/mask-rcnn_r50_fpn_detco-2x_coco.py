_base_ = 'mask-rcnn_r50_fpn_detco-1x_coco.py'

train_cfg = dict(max_epochs=24)
_base_.param_scheduler[1].update(end=24, milestones=[16, 22])
