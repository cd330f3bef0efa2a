# The changes of the classifiers here to mmpretrain's own configs, which read them as
# _base_.backbone…: a ResNet or a vision transformer from a pretrained backbone.
_base_ = '../../_base_/checkpoint.py'

backbone = dict(init_cfg=_base_.init_cfg)
