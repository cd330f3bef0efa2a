# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Architectures by the names of tensors, and networks that are built from them."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.data import Dataset

import mmdense.registry
from mmdense.checkpoints import describe_product
from mmdense.checkpoints.architectures import (
    LAST_STAGE,
    RESNET,
    Architecture,
    architecture,
)
from mmdense.checkpoints.backbones import load_algorithm, load_backbones
from mmdense.checkpoints.model_config import find_foreign_type
from mmdense.checkpoints.networks import find_network
from mmdense.models import DenseCL, SlotCon
from mmdense.utils.errors import CheckpointError, InputError


def tensors_of(kind, **settings):
    return MODELS.build(dict(type=kind, **settings)).state_dict()


@pytest.mark.parametrize(
    'kind, depth, sentence',
    [
        ('ResNet', 18, 'a ResNet-18'),
        ('ResNet', 50, 'a ResNet-50'),
        ('ResNetV1c', 50, 'a ResNet-50 with a deep stem'),
        ('ResNetV1d', 101, 'a ResNet-101 with a deep stem'),
    ],
)
def test_resnets(kind, depth, sentence):
    tensors = tensors_of(f'mmpretrain.{kind}', depth=depth)
    found = architecture(tensors)
    assert found == Architecture(RESNET, depth, deep_stem=kind != 'ResNet')
    assert str(found) == f'{found}' == sentence
    assert find_network(tensors).config == dict(type=f'mmpretrain.{kind}', depth=depth)


@pytest.mark.parametrize(
    'names, found, sentence',
    [
        (
            ['layer1.1.conv2.weight', 'layer2.0.conv2.weight'],
            Architecture(RESNET, blocks=(2, 1)),
            'a network with [2, 1] blocks',
        ),
        (['layer4.0.conv1.weight'], Architecture(LAST_STAGE), 'the last stage of a ResNet'),
        (['stages.0.0.depthwise_conv.weight'], Architecture('ConvNeXt'), 'a ConvNeXt'),
        (['cls_token'], Architecture('vision transformer'), 'a vision transformer'),
        (['b.w', 'a.w'], Architecture('', parts=('a', 'b')), 'a network of a, b'),
        ([], Architecture(''), 'a network of nothing'),
    ],
)
def test_other_networks(names, found, sentence):
    tensors = dict.fromkeys(names, torch.ones(1))
    assert architecture(tensors) == found and str(found) == sentence
    assert find_network(tensors) is None


@pytest.mark.parametrize('kind', ['ResNetV1c', 'ResNetV1d'])
def test_a_deep_stem_is_built_from_tensors(kind, tmp_path):
    torch.save(tensors_of(f'mmpretrain.{kind}', depth=18), tmp_path / 'a.pth')
    backbones = load_backbones(str(tmp_path / 'a.pth'))
    assert type(backbones.pretrained).__name__ == kind
    assert backbones.about == f'{kind}-18 by its tensors'


CONFIG = """
model = dict(
    type='DenseCL',
    queue_len=16,
    data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True),
    backbone=dict(type='mmpretrain.ResNet', depth=18),
    neck=dict(type='DenseCLNeck', in_channels=512, hid_channels={hidden}, out_channels=8),
    head=dict(type='InfoNCEHead'))
"""


@pytest.fixture
def densecl(tmp_path, mmdense_scope):
    """Writes a training checkpoint whose config has so many hidden channels; its model too."""

    def write(hidden=16):
        cfg = CONFIG.format(hidden=16)
        model = mmdense.registry.MODELS.build(Config.fromstring(cfg, '.py').model)
        meta = dict(cfg=CONFIG.format(hidden=hidden))
        meta['mmdense'] = describe_product(model)
        torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth'), model

    return write


def test_a_complete_algorithm(densecl):
    path, model = densecl()
    loaded = load_algorithm(path, kind=DenseCL)
    assert type(loaded) is DenseCL and not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_algorithms_that_do_not_fit(densecl, tmp_path):
    path, _ = densecl(hidden=24)
    with pytest.raises(CheckpointError, match=r"of the algorithm's tensors differ, first .*\(16,"):
        load_algorithm(path)
    with pytest.raises(InputError, match='the model of its own config is DenseCL, not SlotCon'):
        load_algorithm(path, kind=SlotCon)
    (tmp_path / 'c.py').write_text('')
    with pytest.raises(InputError, match='c.py is None'):
        load_algorithm(path, str(tmp_path / 'c.py'))
    torch.save(tensors_of('mmpretrain.ResNet', depth=18), tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match='does not say with which model'):
        load_algorithm(str(tmp_path / 'b.pth'))


def test_foreign_types():
    known = dict(type='ResNet', depth=18, norm_cfg=dict(type='mmpretrain.LN2d'))
    assert find_foreign_type([known], ['MODELS'], nn.Module) is None
    for value in ('os.system', 'mmdet.ResNet', 'TIMMBackbone', 'UnlabeledDataset', 3, None):
        node = [known, dict(parts=(dict(type=value),))]
        assert find_foreign_type(node, ['MODELS'], nn.Module) == ('type', value)
    assert find_foreign_type(dict(known, _scope_='os'), ['MODELS'], nn.Module) == ('_scope_', 'os')
    data = dict(type='UnlabeledDataset')
    assert find_foreign_type(data, ['TRANSFORMS', 'DATASETS'], Dataset) is None


def test_backbones_without_a_prefix(mmdense_scope):
    """In our configs a backbone of mmpretrain needs none; another module does, and a name that
    nobody has is refused."""
    registry = mmdense.registry.MODELS
    for kind in ('ResNetV1c', 'ConvNeXt', 'VisionTransformer'):
        assert registry.get(kind) is MODELS.get(kind) is not None
    cfg = Config.fromstring(
        CONFIG.format(hidden=16).replace('mmpretrain.ResNet', 'ResNetV1c'), '.py'
    )
    model = registry.build(cfg.model)
    assert type(model.backbone) is MODELS.get('ResNetV1c')
    assert registry.get('DenseCL') is DenseCL
    assert registry.get('LinearNeck') is None
    with pytest.raises(KeyError, match='ResNetV9 is not in'):
        registry.build(dict(type='ResNetV9'))
