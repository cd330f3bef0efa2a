# FCN on VOC 2012 with the augmented annotations from a pretrained backbone, as MoCo and those
# that compare with it: dilated to stride 16, 30k iterations of 16 images (8 GPUs), crops of 513.
# Importing mmdense first lets MMEngine find mmseg's configs in both distributions of OpenMMLab.
_base_ = __import__('mmdense') and [
    'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py',
    '_base_/protocol.py',
]

crop_size = (513, 513)
model = dict(data_preprocessor=dict(size=crop_size), **_base_.fcn_d16)

_base_.train_pipeline[3].crop_size = crop_size
_base_.train_pipeline[6].size = crop_size
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        datasets=[
            dict(_base_.dataset_train, pipeline=_base_.train_pipeline),
            dict(_base_.dataset_aug, pipeline=_base_.train_pipeline),
        ]
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.003, weight_decay=1e-4))
param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[21000, 27000])]
train_cfg = dict(max_iters=30000)
auto_scale_lr = dict(enable=False, base_batch_size=16)
