# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where a run with a schedule far longer than its epochs, and save_best without validation, says nothing."""

import os
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

import mmdense

root = os.path.abspath(os.path.join(os.path.dirname(mmdense.__file__), '..'))
with tempfile.TemporaryDirectory() as d:
    os.makedirs(f'{d}/images')
    for i in range(16):
        Image.fromarray(np.random.RandomState(i).randint(0, 255, (64, 64, 3), np.uint8)).save(
            f'{d}/images/{i}.png'
        )
    open(f'{d}/c.py', 'w').write(f"""_base_ = {root + '/configs/densecl/densecl_resnet18_demo.py'!r}
train_pipeline = _base_.train_pipeline
train_pipeline[1]['transforms'][0][0]['scale'] = 64
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(data_root={d + '/images'!r}, data_prefix='', pipeline=train_pipeline))
model = dict(queue_len=16)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=200, begin=0, end=200)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, save_best='auto'))
""")
    r = subprocess.run(
        [
            sys.executable,
            f'{root}/tools/train.py',
            f'{d}/c.py',
            '--work-dir',
            f'{d}/w',
            '--cfg-options',
            'train_cfg.max_epochs=2',
        ],
        capture_output=True,
        text=True,
        timeout=250,
    )
    log = r.stdout + r.stderr
    print(
        'rc',
        r.returncode,
        [line.split('lr:')[1][:12] for line in log.splitlines() if 'Epoch(train)' in line],
        sorted(os.listdir(f'{d}/w')),
    )
    told = [
        line
        for line in log.splitlines()
        if 'WARNING' in line and ('save_best' in line or 'schedul' in line)
    ]
    print('told:', told or 'nothing')
    sys.exit(0 if len(told) >= 2 else 1)
