# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a detector's ResNet with deformable convolutions or plugins cannot take a plain pretrained ResNet (needs mmdet and compiled mmcv)."""

import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

import mmdense

register_all_modules(True)
later = (False, True, True, True)
kinds = {
    'plain': {},
    'DCN': dict(
        dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False), stage_with_dcn=later
    ),
    'DCNv2': dict(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False), stage_with_dcn=later
    ),
    'GCNet': dict(
        plugins=[
            dict(
                cfg=dict(type='ContextBlock', ratio=1.0 / 16), stages=later, position='after_conv3'
            )
        ]
    ),
}
bad = 0
with tempfile.TemporaryDirectory() as d:
    torch.save(torchvision.models.resnet50().state_dict(), f'{d}/r50.pth')
    for name, extra in kinds.items():
        net = MODELS.build(
            dict(
                type='ResNet',
                depth=50,
                **extra,
                init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=f'{d}/r50.pth'),
            )
        )
        try:
            net.init_weights()
            print(name, 'loaded')
        except Exception as error:
            print(name, str(error)[-330:])
            bad = 1
sys.exit(bad)
