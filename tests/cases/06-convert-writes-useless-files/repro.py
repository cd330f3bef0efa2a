# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where convert_checkpoint says '0 missed' of a file that no backbone can take, or the loader gives a false reason."""

import os
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
import torchvision
from mmpretrain.models import ResNet

import mmdense

tool = os.path.join(os.path.dirname(mmdense.__file__), '..', 'tools', 'convert_checkpoint.py')
net = torchvision.models.resnet18()
whole = {k: v for k, v in net.state_dict().items() if not k.startswith('fc.')}
numbers = torch.nn.Sequential(
    *list(net.children())[:-1]
).state_dict()  # as lightly's tutorials build a backbone
pre = lambda p, s=whole: {p + k: v for k, v in s.items()}
kinds = {
    'Sequential(ResNet)': numbers,
    'Sequential(ResNet) below backbone.': {'state_dict': pre('backbone.', numbers)},
    'model_state_dict beside a loss': {
        'model_state_dict': dict(whole),
        'optimizer_state_dict': {'state': {}},
        'loss': torch.tensor(1.0),
    },
    'backbone alone compiled': {
        'state_dict': {**pre('backbone._orig_mod.'), 'head.fc.weight': torch.zeros(2, 512)}
    },
    'backbone alone in DataParallel': {
        'state_dict': {**pre('backbone.module.'), 'head.fc.weight': torch.zeros(2, 512)}
    },
    'with projection head and prototypes': {
        **whole,
        'projection_head.0.weight': torch.zeros(8, 512),
        'prototypes.weight': torch.zeros(8, 8),
    },
}
bad = 0
with tempfile.TemporaryDirectory() as d:
    for name, content in kinds.items():
        src, dst = f'{d}/src.pth', f'{d}/dst.pth'
        torch.save(content, src)
        if os.path.exists(dst):
            os.remove(dst)
        r = subprocess.run(
            [sys.executable, tool, src, dst], capture_output=True, text=True, timeout=100
        )
        line = (r.stdout + r.stderr).strip().splitlines()[-1].split(': ', 1)[-1]
        fits = None
        if os.path.exists(dst):
            net = ResNet(18)
            net_keys = set(net.state_dict())
            fits = set(torch.load(dst, weights_only=False)['state_dict']) == net_keys
        print(f'{name:36} fits a ResNet-18: {fits}; said: {line[:150]}')
        bad |= fits is False  # written, and of no use; a refusal with the right prefix= is fine
sys.exit(int(bad))
