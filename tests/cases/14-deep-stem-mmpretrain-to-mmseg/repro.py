# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a ResNetV1c that was pretrained here (mmpretrain's) does not fill mmseg's or mmdet's ResNetV1c."""

import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
from mmpretrain.models import ResNetV1c, ResNetV1d
from mmseg.registry import MODELS as SEG
from mmseg.utils import register_all_modules

import mmdense

register_all_modules(False)
bad = 0
with tempfile.TemporaryDirectory() as d:
    for kind in (ResNetV1c, ResNetV1d):
        torch.save(kind(depth=50).state_dict(), f'{d}/x.pth')
        net = SEG.build(
            dict(
                type=f'mmseg.{kind.__name__}',
                depth=50,
                norm_cfg=dict(type='BN', requires_grad=True),
                init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=f'{d}/x.pth'),
            )
        )
        try:
            net.init_weights()
            print('RESULT', kind.__name__, 'loaded')
        except Exception as error:
            print('RESULT', kind.__name__, '->', str(error)[-420:])
            bad = 1
sys.exit(bad)
