# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Training checkpoints of an earlier mmdense, one for each file in tests/earlier_checkpoints: a run
continues from it with the same numbers, and its product transfers."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

FOLDER = Path(__file__).parents[1] / 'earlier_checkpoints'
NAMES = sorted(path.stem for path in FOLDER.glob('*.pth'))


@pytest.fixture(scope='module')
def earlier():
    """The module tests/earlier_checkpoints/run.py."""
    spec = importlib.util.spec_from_file_location('earlier_checkpoints_run', FOLDER / 'run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_close(found, expected):
    """Compare lists of numbers, by name: to 1e-5, relative, or absolute below 1."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        ours, theirs = (torch.tensor(v, dtype=torch.double) for v in (found[name], values))
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda message, name=name: f'{name}: {message}'
        )


def test_there_are_checkpoints_and_each_is_small():
    assert len(NAMES) >= 4
    for name in NAMES:
        assert (FOLDER / f'{name}.pth').stat().st_size < 300_000, name


@pytest.mark.parametrize('name', NAMES)
def test_a_run_continues(name, earlier, tmp_path, monkeypatch):
    """Three more steps: losses and tensors are those that the earlier version computed."""
    monkeypatch.chdir(tmp_path)
    losses, state = earlier.train(name, tmp_path, resume=FOLDER / f'{name}.pth')
    expected = json.loads((FOLDER / f'{name}.json').read_text())
    assert_close(losses, expected['losses'])
    assert_close(earlier.describe(state), expected['tensors'])
    # the three steps did change the weights, by far more than what is tolerated
    before = torch.load(FOLDER / f'{name}.pth', weights_only=False)['state_dict']
    with pytest.raises(AssertionError):
        assert_close(earlier.describe(before), expected['tensors'])


@pytest.mark.parametrize('package', ['mmpretrain', 'mmdet'])
@pytest.mark.parametrize('name', NAMES)
def test_the_product_transfers(name, package, require):
    """Every tensor of a backbone of the same width is the file's, to the last bit."""
    require(package)
    path = FOLDER / f'{name}.pth'
    checkpoint = torch.load(path, weights_only=False)
    prefix = checkpoint['meta']['mmdense']['product'] + '.'
    product = {
        key[len(prefix) :]: value
        for key, value in checkpoint['state_dict'].items()
        if key.startswith(prefix)
    }
    sizes = Config.fromfile(str(path.with_suffix('.py'))).model.backbone
    cfg = dict(
        type=f'{package}.ResNet',
        **{key: sizes[key] for key in ('depth', 'stem_channels', 'base_channels')},
        init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint=str(path)),
    )
    with DefaultScope.overwrite_default_scope(package):
        backbone = ROOT.build(cfg)
        backbone.init_weights()
    state = backbone.state_dict()
    assert state.keys() == product.keys()
    for key, value in state.items():
        assert torch.equal(value, product[key]), key
