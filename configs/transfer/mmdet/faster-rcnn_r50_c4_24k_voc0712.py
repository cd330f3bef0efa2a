# Faster R-CNN R50-C4 on VOC 2007 + 2012 trainval, tested on VOC 2007: 24k iterations of 16
# images, short side 480 to 800. AP, AP50 and AP75 are VOC's measure (11 points) at one IoU or
# as the mean over ten of them, as the papers report: pascal_voc/mAP, AP50, AP75.
_base_ = ['mmdet::pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py', '_base_/protocol.py']

model = _base_.c4

# Without ignore_keys MMEngine refuses to join the two years.
train_dataloader = dict(dataset=dict(ignore_keys=['dataset_type']), **_base_.precise_bn_loader)
custom_hooks = [dict(interval=24000, **_base_.precise_bn)]

train_cfg = dict(max_iters=24000)
_base_.param_scheduler[1].update(end=24000, milestones=[18000, 22000])

val_evaluator = _base_.voc_ap
test_evaluator = val_evaluator
