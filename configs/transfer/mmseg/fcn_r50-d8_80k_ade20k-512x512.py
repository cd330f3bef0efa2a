# FCN on ADE20K from a pretrained backbone: mmseg's own config, dilated to stride 8 and with its
# auxiliary head, on a ResNet with a plain stem. 80k iterations of 16 images (8 GPUs).
# Importing mmdense first lets MMEngine find mmseg's configs in both distributions of OpenMMLab.
_base_ = __import__('mmdense') and [
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    '_base_/protocol.py',
]

model = dict(pretrained=None, backbone=_base_.backbone)
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
