# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

# Before torch is imported, here and in the subprocesses of tests: with a thread for each of many
# cores the small tensors of tests are slower, and with several workers they fight for the cores.
_THREADS = 1 if 'PYTEST_XDIST_WORKER' in os.environ else min(4, os.cpu_count() or 1)
os.environ.setdefault('OMP_NUM_THREADS', str(_THREADS))
os.environ.setdefault('MKL_NUM_THREADS', os.environ['OMP_NUM_THREADS'])


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes, or needs the network: `make test-slow`')


@pytest.fixture(scope='session')
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope='session')
def data_root() -> Path:
    """The folder of real images: coco/, camvid/, bccd/, unlabeled/.

    A stranger has none and these tests are skipped; where CI=true that would
    hide that nothing was tested, so there it fails.
    """
    root = Path(os.environ.get('MMDENSE_DATA') or REPO / '..' / 'shared' / 'data').resolve()
    if not root.is_dir():
        reason = f'no test data in {root} (MMDENSE_DATA says where it is)'
        if os.environ.get('CI') == 'true':
            pytest.fail(reason)
        pytest.skip(reason)
    return root


@pytest.fixture(scope='session')
def golden():
    """Loads one of the published code's vectors as a dict of tensors."""
    import numpy as np
    import torch

    def load(name: str) -> dict:
        with np.load(REPO / 'tests' / 'golden' / f'{name}.npz') as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture
def mmdense_scope():
    """Builds from configs as a run with ``default_scope='mmdense'`` does."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdense'):
        yield
