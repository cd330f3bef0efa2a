# UperNet on ADE20K from a pretrained ViT-B: mmseg's own config, which is MAE's protocol: relative
# positions that begin at 0, a learning rate that falls by 0.65 from block to block, 160k iterations
# of 16 images (8 GPUs). The file may be of any vision transformer of this size.
# Importing mmdense first lets MMEngine find mmseg's configs in both distributions of OpenMMLab.
_base_ = __import__('mmdense') and [
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
    '../_base_/checkpoint.py',
]

model = dict(pretrained=None, backbone=dict(init_cfg=_base_.init_cfg))
auto_scale_lr = dict(enable=False, base_batch_size=16)
