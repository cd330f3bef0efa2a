# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where `mmdense check`, or convert_checkpoint, calls a whole and healthy backbone 'not a whole ResNet'."""

import os
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings('ignore')
import torch
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules

import mmdense

register_all_modules(True)
tool = os.path.join(os.path.dirname(mmdense.__file__), '..', 'tools', 'convert_checkpoint.py')
kinds = {
    'ResNet-18, BN': dict(type='ResNet', depth=18),
    'ResNet-18, GN': dict(type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=32)),
    'ResNet-18, IN': dict(type='ResNet', depth=18, norm_cfg=dict(type='IN', affine=True)),
    'Res2Net-50': dict(type='Res2Net', depth=50, scales=4, base_width=26),
    'ResNeSt-50': dict(type='ResNeSt', depth=50),
    'RegNet': dict(type='RegNet', arch='regnetx_400mf'),
    'HRNet-W18': dict(type='HRNet', arch='w18'),
}
bad = 0
with tempfile.TemporaryDirectory() as d:
    for name, cfg in kinds.items():
        path = f'{d}/x.pth'
        torch.save(MODELS.build(cfg).state_dict(), path)
        check = subprocess.run(
            [sys.executable, '-m', 'mmdense', 'check', path],
            capture_output=True,
            text=True,
            timeout=100,
        )
        said = [line for line in check.stdout.splitlines() if 'not a whole' in line]
        convert = subprocess.run(
            [sys.executable, tool, path, f'{d}/out.pth'],
            capture_output=True,
            text=True,
            timeout=100,
        )
        print(f'{name:14} check: {said or "ok"}; convert rc {convert.returncode}')
        bad |= bool(said) or convert.returncode != 0
        if os.path.exists(f'{d}/out.pth'):
            os.remove(f'{d}/out.pth')
sys.exit(int(bad))
