# The changes of the segmenters here to mmseg's own configs, which read them as _base_.backbone…: a
# ResNet with a plain stem from a pretrained backbone. mmseg's norm is SyncBN already, all of it
# trained and nothing frozen.
# _scope_ keeps the types mmseg's where another project inherits this file as 'mmdense::…'.
_base_ = '../../_base_/checkpoint.py'

backbone = dict(type='ResNet', _scope_='mmseg', init_cfg=_base_.init_cfg)

# MoCo's FCN: dilated to stride 16; two convolutions of 256 with dilation 6, of the last features
# alone, without dropout and auxiliary head.
fcn_d16 = dict(
    pretrained=None,
    backbone=dict(
        strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=False, **backbone
    ),
    decode_head=dict(
        channels=256, dilation=6, concat_input=False, dropout_ratio=0, align_corners=True
    ),
    auxiliary_head=None,
)
