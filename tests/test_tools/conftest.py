# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

# A recipe's real config, at a size that a test can afford.
TINY = dict(
    config='configs/densecl_r50_coco.py',
    options=[
        'model.backbone.depth=18',
        'model.neck.in_channels=512',
        'model.neck.hid_channels=64',
        'model.queue_len=64',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=0',
        'train_dataloader.dataset.pipeline.1.transforms.0.0.scale=64',
        'train_cfg.max_epochs=2',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
    ],
)


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of sixteen images."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(16):
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 72), Image.BICUBIC).save(folder / f'{i:02}.jpg')
    return str(folder)


@pytest.fixture
def tiny(repo, images, tmp_path):
    """Arguments for tools/train.py, and the work directory they name."""
    work_dir = tmp_path / 'work'

    def arguments(*options, config=TINY['config'], flags=()):
        data = [
            f'train_dataloader.dataset.data_root={images}',
            'train_dataloader.dataset.data_prefix=',
        ]
        return [
            str(repo / config),
            *('--work-dir', str(work_dir), *flags),
            *('--cfg-options', *TINY['options'], *data, *options),
        ]

    arguments.work_dir = work_dir
    return arguments


@pytest.fixture
def run(repo):
    """Runs a command as a user does; its output and exit code."""

    def call(*command, timeout=300, **env):
        path = os.pathsep.join(filter(None, [str(repo), os.environ.get('PYTHONPATH')]))
        env = dict(os.environ, PYTHONPATH=path, PYTHON=sys.executable, **env)
        return subprocess.run(
            [str(c) for c in command],
            env=env,
            cwd=repo,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )

    return call


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]
