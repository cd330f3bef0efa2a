# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a checkpoint with tensors three dicts deep is said to hold none."""

import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision
from mmpretrain.models import ResNet

import mmdense

whole = {
    k: v for k, v in torchvision.models.resnet18().state_dict().items() if not k.startswith('fc.')
}
trunk = {'_feature_blocks.' + k: v for k, v in whole.items()}
with tempfile.TemporaryDirectory() as d:
    torch.save(
        {
            'phase_idx': 3,
            'classy_state_dict': {
                'base_model': {
                    'model': {'trunk': trunk, 'heads': {'0.clf.0.weight': torch.zeros(8, 512)}},
                    'meta': {},
                }
            },
        },
        f'{d}/model.torch',
    )
    for prefix in (
        None,
        'classy_state_dict.base_model.model.trunk._feature_blocks',
        'trunk._feature_blocks',
        '_feature_blocks',
    ):
        net = ResNet(
            18,
            init_cfg=dict(
                type='mmdense.SelfSupPretrained', checkpoint=f'{d}/model.torch', prefix=prefix
            ),
        )
        try:
            net.init_weights()
            print(prefix, 'loaded')
            sys.exit(0)
        except Exception as error:
            print(prefix, '->', str(error)[-150:])
            honest = 'no tensors' not in str(error)
sys.exit(0 if honest else 1)
