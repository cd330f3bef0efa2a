# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test what the contract promises to an algorithm without backbone, neck and head of its own: one
that holds a detector, which is built from a dict and is the product."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import Runner
from tiny_algorithms import (
    NORM,
    algorithms,
    each_algorithm,
    tiny_form,
    tiny_forms,
    tiny_model,
)
from torch import nn

from mmdense.checkpoints import SelfSupPretrained, read_checkpoint
from mmdense.engine import HealthMonitorHook
from mmdense.models import SelfSupervisor, Views, registered_algorithms
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError


class Detector(BaseModule):
    """Stands for a detector of mmdet: a backbone and a head on its last map."""

    def __init__(self, channels=8, backbone=None, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, inputs):
        maps = self.backbone(inputs)
        return (*maps, self.head(maps[-1]))


class HeldDetector(SelfSupervisor, BaseModel):
    """Predict the same boxes in both views."""

    product = 'detector'
    views = Views(groups=(2,), boxes=True)

    def __init__(self, detector, **kwargs):
        super().__init__(**kwargs)
        self.detector = MODELS.build(detector)

    def loss(self, inputs, data_samples=None, **kwargs):
        self.check_views(inputs)
        first, second = (self.detector(view)[-1] for view in inputs)
        self.probe(dense=(first, second))
        return dict(loss_boxes=(first - second).abs().mean())

    def trained_parts(self):
        return [self.detector]


DETECTOR = dict(
    type='Detector',
    channels=64,
    backbone=dict(
        type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=NORM
    ),
)


@pytest.fixture
def build(mmdense_scope):
    """Build the algorithm, which is registered for the time of a test."""
    kinds = (Detector, HeldDetector)
    for kind in kinds:
        MODELS.register_module(module=kind)

    def call(**changes):
        torch.manual_seed(0)
        return MODELS.build(dict(dict(type='HeldDetector', detector=DETECTOR), **changes))

    yield call
    for kind in kinds:
        del MODELS.module_dict[kind.__name__]


def views(n=2):
    rng = torch.Generator().manual_seed(1)
    return list(torch.randn(2, n, 3, 64, 64, generator=rng))


def test_every_algorithm_has_a_tiny_form():
    """A new algorithm's test file must say what the generic tests need."""
    ours = [kind for kind in registered_algorithms() if kind.__module__.startswith('mmdense.')]
    missing = {kind.__name__ for kind in ours} - tiny_forms().keys()
    assert not missing, (
        f'{", ".join(sorted(missing))}: no file of tests/test_models defines tiny() for it; see '
        'Tiny in tests/tiny_algorithms.py'
    )
    assert algorithms(labelled=True) == sorted(kind.__name__ for kind in ours)
    assert sum(form.example for form in tiny_forms().values()) == 1


@each_algorithm(labelled=True)
def test_building_reads_no_file(algorithm):
    """Weights to start from are read when the weights are initialized."""
    model = tiny_model(algorithm, pretrained='no_such_file.pth')
    with pytest.raises(CheckpointError, match='no_such_file.pth does not exist'):
        model.init_weights()


def test_it_is_built_and_initialised(build):
    model = build()
    model.init_weights()
    assert HeldDetector in registered_algorithms()
    assert model.get_product() is model.detector
    kernels = [p for p in model.parameters() if p.dim() == 4 and p.size(3) > 1]
    assert len(kernels) > 15
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    # by its own init_cfg: ResNet's, not PyTorch's
    weight = model.detector.backbone.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_loss_and_maps(build):
    model = build()
    losses = model(views(), mode='loss')
    assert losses.keys() == {'loss_boxes'} and losses['loss_boxes'] > 0
    losses['loss_boxes'].backward()
    assert all(p.grad is not None for p in model.parameters())
    data = dict(inputs=[(view * 50 + 100).byte() for view in views()], data_samples=None)
    assert model._run_forward(model.data_preprocessor(data, True), 'loss').keys() == losses.keys()
    maps = model(views()[0], mode='tensor')
    assert [tuple(m.shape) for m in maps] == [(2, 64, 2, 2), (2, 4, 2, 2)]
    with pytest.raises(InputError, match='HeldDetector needs 2 views of every image, got 1'):
        model(views()[:1], mode='loss')
    with pytest.raises(TypeError, match='HeldDetector got an unexpected argument: foo'):
        build(foo=1)
    with pytest.raises(InputError, match='pretrained needs a backbone'):
        build(pretrained='x.pth')


def test_it_is_probed(build):
    model, hook, hub = build(), HealthMonitorHook(interval=1), {}
    runner = SimpleNamespace(
        model=model,
        iter=0,
        logger=SimpleNamespace(warning=print, info=print),
        message_hub=SimpleNamespace(update_scalar=lambda name, value: hub.update({name: value})),
    )
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    model(views(), mode='loss')
    hook.after_train_iter(runner, 0)
    names = ('std', 'rank', 'positive_similarity', 'negative_similarity')
    assert hub.keys() == {f'train/health_dense_{name}' for name in names}


def test_it_is_compiled(build):
    if not hasattr(nn.Module, 'compile'):
        pytest.skip('PyTorch cannot compile')
    plain, model = build(), build(compile=dict(backend='eager'))
    names = list(model.state_dict())
    expected, losses = plain(views(), mode='loss'), model(views(), mode='loss')
    torch.testing.assert_close(losses, expected)
    assert model.detector._compiled_call_impl is not None
    assert plain.detector._compiled_call_impl is None
    assert list(model.state_dict()) == names


@pytest.fixture
def trained(build, images, tmp_path):
    """The folder of a run of four steps, by a recipe whose model is another."""
    form = tiny_form()
    cfg = Config.fromfile(str(form.config))
    cfg.model = ConfigDict(type='HeldDetector', detector=DETECTOR)
    options = [o.split('=') for o in form.recipe_options if not o.startswith('model.')]
    cfg.merge_from_dict({key: int(value) for key, value in options})
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': images,
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_epochs': 1,
            'work_dir': str(tmp_path),
            'experiment_name': 'held',
        }
    )
    Runner.from_cfg(cfg).train()
    return tmp_path


def test_it_trains_is_exported_and_loads(trained, build):
    checkpoint = read_checkpoint(str(trained / 'epoch_1.pth'))
    about = checkpoint['meta']['mmdense']
    assert (about['algorithm'], about['product']) == ('HeldDetector', 'detector')
    state = checkpoint['state_dict']
    exported = read_checkpoint(str(trained / 'backbone.pth'))['state_dict']
    assert {f'detector.{name}' for name in exported} == state.keys()
    for name, value in exported.items():
        assert torch.equal(value, state[f'detector.{name}'])

    # the detector alone, into one that another package builds; and the complete algorithm
    def filled(path, **parts):
        detector = MODELS.build(dict(DETECTOR, **parts))
        SelfSupPretrained(str(path))(detector)
        return detector.state_dict()

    for path in (trained / 'backbone.pth', trained / 'epoch_1.pth'):
        for name, value in filled(path).items():
            assert torch.equal(value, exported[name]), name
        with pytest.raises(CheckpointError, match='does not fit Detector'):
            filled(path, backbone=dict(DETECTOR['backbone'], base_channels=16), channels=128)
    fill = dict(type='Pretrained', _scope_='mmdense', checkpoint=str(trained / 'epoch_1.pth'))
    model = build(init_cfg=fill)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert build().load_state_dict(state, strict=True)
