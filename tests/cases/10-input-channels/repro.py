# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where one or four input channels end in a bare RuntimeError, or the reason of a refusal does not mention channels."""

import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision
from mmpretrain.models import ResNet

import mmdense

bad = 0
with tempfile.TemporaryDirectory() as d:
    torch.save(torchvision.models.resnet18().state_dict(), f'{d}/r18.pth')
    for n in (1, 4):
        net = ResNet(
            18,
            in_channels=n,
            init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=f'{d}/r18.pth'),
        )
        try:
            net.init_weights()
            print(n, 'loaded')
        except Exception as error:
            reason = str(error).split('.  ')[-1]
            print(n, '->', reason[-230:])
            bad |= 'channel' not in reason
sys.exit(int(bad))
