# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from importlib.metadata import PackageNotFoundError

import mmcv
import mmengine
import pytest
import torch

import mmdense
from mmdense.cli import main
from mmdense.utils import collect_env as module


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch):
    """MMEngine's own starts compilers; here it is told apart by one fact."""
    monkeypatch.setattr(
        'mmengine.utils.dl_utils.collect_env',
        lambda: {'PyTorch': torch.__version__, 'numpy_random_seed': 7, 'Build': 'two\n  lines'},
    )


@pytest.fixture
def installed(monkeypatch):
    """Lets these distributions be the ones that are installed."""

    def put(**versions):
        versions = {name.replace('_', '-'): version for name, version in versions.items()}

        def version(name):
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(module, 'version', version)

    return put


def facts(capsys):
    main(['env'])
    lines = capsys.readouterr().out.splitlines()
    return dict([part.strip() for part in line.split('  ', 1)] for line in lines)


def test_env(capsys):
    found = facts(capsys)
    assert found['mmdense'].startswith(mmdense.__version__)
    assert mmengine.__version__ in found['mmengine'] and mmcv.__version__ in found['mmcv']
    distribution = 'onedl' if 'onedl' in found['mmengine'] else 'classic'
    assert found['OpenMMLab distribution'] == distribution
    assert found['checkpoint loader'] == 'restricted'
    assert int(found['CPU cores']) >= 1 and found['memory'].endswith('GiB')
    assert found['PyTorch'] == torch.__version__ and found['Build'] == 'two lines'
    assert 'numpy_random_seed' not in found
    has_ops = mmcv_has_ops()
    assert (found['mmcv ops'] == 'compiled') == has_ops


def mmcv_has_ops():
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return False
    return True


def test_both_lines_mixed(capsys, installed):
    installed(mmengine='0.10.7', onedl_mmcv='2.3.6', mmcv='2.1.0', mmpretrain='1.2.0')
    found = facts(capsys)
    assert found['mmcv'] == 'mmcv 2.1.0, onedl-mmcv 2.3.6'
    assert found['OpenMMLab distribution'].startswith('MIXED')
    assert 'onedl-mmcv 2.3.6' in found['OpenMMLab distribution']


@pytest.mark.parametrize(
    'line, versions',
    [
        ('onedl', dict(onedl_mmengine='1', onedl_mmcv='2')),
        ('classic', dict(mmengine='1', mmcv='2', mmsegmentation='3')),
        ('unknown', {}),
    ],
)
def test_lines(capsys, installed, line, versions):
    installed(**versions)
    found = facts(capsys)
    assert found['OpenMMLab distribution'].split()[0] == line
    assert found['simplejpeg'] == '-'
    if line == 'unknown':
        assert mmengine.__version__ in found['mmengine'] and 'checkout' in found['mmengine']


def test_a_loader_that_is_not_restricted(capsys, monkeypatch):
    from mmengine.runner import CheckpointLoader

    def load(path, map_location=None):
        return torch.load(path, map_location)

    monkeypatch.setitem(CheckpointLoader._schemes, '', load)
    assert facts(capsys)['checkpoint loader'].startswith('NOT RESTRICTED')


def test_what_fails_is_a_fact(capsys, monkeypatch):
    def fails():
        raise ModuleNotFoundError("No module named 'distutils'")

    monkeypatch.setattr('mmengine.utils.dl_utils.collect_env', fails)
    assert 'distutils' in facts(capsys)['collect_env of MMEngine']
