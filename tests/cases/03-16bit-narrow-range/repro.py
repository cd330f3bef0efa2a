# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Exit 1 where 16-bit images that use a part of the range are trained on as (nearly) one grey, without a word."""

import io
import os
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from mmdense.datasets.transforms.loading import decode_image

rng = np.random.RandomState(0)
bad = 0
base = np.asarray(
    Image.fromarray(rng.randint(0, 255, (6, 8), np.uint8)).resize((128, 96), Image.BICUBIC)
).astype(np.uint16)
for name, a in {
    '8 bit': base.astype(np.uint8),
    'X-ray, 12 bits used': base * 16,
    '10 bits used': base * 4,
    'thermal, 51,000 to 52,000': 51000 + base * 4,
}.items():
    f = io.BytesIO()
    Image.fromarray(a).save(f, 'PNG')
    got = decode_image(f.getvalue())
    print(
        f'{name:28} grey levels left {len(np.unique(got)):3}, standard deviation {got.std():5.1f} of 255'
    )
with tempfile.TemporaryDirectory() as d:
    for i in range(16):
        Image.fromarray(np.roll(base, i) * 16).save(f'{d}/{i}.png')
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'mmdense',
            'plan',
            d,
            '--backbone',
            'resnet18',
            '--size',
            '64',
            '--batch-size',
            '4',
            '--workers',
            '0',
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = [
        line
        for line in (r.stdout + r.stderr).splitlines()
        if '16' in line and ('bit' in line or 'dark' in line or 'range' in line)
    ]
    print('plan says:', said or 'nothing')
    bad = not said
sys.exit(int(bad))
