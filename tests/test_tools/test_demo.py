# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image


def demo(repo, *args):
    return subprocess.run(
        [sys.executable, str(repo / 'tools' / 'demo.py'), *map(str, args)],
        env=dict(os.environ, PYTHONPATH=str(repo)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


@pytest.mark.skipif(find_spec('skimage') is None, reason='the photographs are of scikit-image')
def test_from_photographs_to_picture(repo, tmp_path):
    # a second run: an old tile goes, what is not the demo's stays
    photographs = tmp_path / 'photographs'
    photographs.mkdir()
    (photographs / 'old_tile_0_0.jpg').write_bytes(b'')
    (tmp_path / 'mine.txt').write_text('mine')
    tiny = [
        '--epochs',
        '1',
        '--batch-size',
        '8',
        '--workers',
        '0',
        '--max-tiles',
        '16',
        '--pairs',
        '1',
    ]
    done = demo(repo, '--work-dir', tmp_path, *tiny)
    assert done.returncode == 0, done.stdout
    assert 'epoch   1' in done.stdout
    assert len(list(photographs.iterdir())) == 16
    assert not (photographs / 'old_tile_0_0.jpg').exists()
    assert (tmp_path / 'mine.txt').read_text() == 'mine'

    for name in ('random weights', 'pretrained weights', 'blind guessing'):
        share = next(line for line in done.stdout.splitlines() if name in line)
        assert 0 <= float(share[len(name) + 5 :].split()[0].rstrip('%')) <= 100
    assert done.stdout.endswith('-m mmdense pretrain /path/to/images\n')
    assert (tmp_path / 'backbone.pth').stat().st_size > 1e6
    picture = np.asarray(Image.open(tmp_path / 'correspondence.png').convert('L'))
    assert min(picture.shape) > 800
    assert all(half.std() > 20 for half in np.array_split(picture, 2, axis=1))


@pytest.mark.parametrize(
    'args, words',
    [
        (['--epochs', '-1'], '--epochs must be a whole number from 1, got -1'),
        (['--workers', 'two'], '--workers must be a whole number from 0, got two'),
    ],
)
def test_bad_input_is_one_line(repo, tmp_path, args, words):
    done = demo(repo, '--work-dir', tmp_path / 'none', *args)
    assert done.returncode == 1
    assert done.stdout.strip() == f'mmdense: error: {words}'
    assert not (tmp_path / 'none').exists()
