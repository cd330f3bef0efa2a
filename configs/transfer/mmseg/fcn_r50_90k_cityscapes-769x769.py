# FCN on Cityscapes from a pretrained backbone, as MoCo and those that compare with it: dilated
# to stride 16, 90k iterations of 16 images (8 GPUs), crops of 769, tested in windows of 769.
# Importing mmdense first lets MMEngine find mmseg's configs in both distributions of OpenMMLab.
_base_ = __import__('mmdense') and [
    'mmseg::fcn/fcn-d6_r50-d16_4xb2-80k_cityscapes-769x769.py',
    '_base_/protocol.py',
]

model = _base_.fcn_d16

optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[63000, 81000])]
train_cfg = dict(max_iters=90000)
auto_scale_lr = dict(enable=False, base_batch_size=16)
