# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Networks in the names of other packages fill those of OpenMMLab, and compute the same."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import load_file

from mmdense.checkpoints import read_checkpoint, recognise, self_sup_pretrained
from mmdense.checkpoints.dialects import DIALECTS, find_dialect, to_names_of, to_our_names
from mmdense.utils.errors import CheckpointError

NARROW = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
VIT = dict(type='VisionTransformer', arch=NARROW, img_size=64, patch_size=16, out_type='featmap')
CONVNEXT = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]))
CONVNEXT.update(gap_before_final_norm=False, out_indices=(3,))
V2 = dict(use_grn=True, layer_scale_init_value=0.0)


def build(package='mmpretrain', path=None, **cfg):
    """A network with other numbers everywhere, or filled from a file; in eval mode."""
    if path:
        cfg['init_cfg'] = dict(type='mmdense.SelfSupPretrained', checkpoint=str(path))
    with DefaultScope.overwrite_default_scope(package):
        model = MODELS.build(dict(cfg, type=f'{package}.{cfg["type"]}'))
    if path:
        model.init_weights()
    else:
        vary(model)
    model.eval()
    return model


def vary(model):
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith('running_var'):
            value.copy_(value + torch.randn_like(value) * 0.1)
    model.eval()
    return model


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def timm_vit(**settings):
    from timm.models.vision_transformer import VisionTransformer

    sizes = dict(img_size=64, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2)
    return vary(VisionTransformer(**sizes, **settings))


def as_map(tokens):
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 4, 4)


@pytest.mark.parametrize('scale, chunk', [(None, 0), (1e-2, 0), (1e-2, 2)])
def test_vision_transformers_of_timm(scale, chunk, image, tmp_path, require):
    """Also DINO's and MoCo v3's, which have the same names, and DINOv2's with its layer scale; its
    training numbers blocks twice."""
    require('timm')
    network = timm_vit(init_values=scale, num_classes=5)
    tensors = network.state_dict()
    if chunk:
        tensors = {
            re.sub(r'^blocks\.(\d+)', lambda m: f'blocks.{int(m[1]) // chunk}.{m[1]}', key): value
            for key, value in tensors.items()
        }
        assert 'blocks.1.2.norm1.weight' in tensors
    torch.save(dict(model=tensors), tmp_path / 'x.pth')
    found = recognise(torch.load(tmp_path / 'x.pth'))
    assert found.source == ('an unnamed source' if chunk else 'timm')
    assert sorted(found.dropped) == ['head.bias', 'head.weight']
    model = build(path=tmp_path / 'x.pth', **VIT, layer_scale_init_value=scale or 0.0)
    with torch.no_grad():
        assert_same(model(image)[0], as_map(network.forward_features(image)))


def test_vision_transformers_of_mmseg(image, tmp_path, require):
    """From timm, and back from mmseg into mmpretrain."""
    require('timm')
    require('mmseg')
    network = timm_vit()
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    sizes = dict(embed_dims=32, num_layers=3, num_heads=4, mlp_ratio=2, img_size=(64, 64))
    cfg = dict(type='VisionTransformer', **sizes, final_norm=True, patch_bias=True)
    cfg.update(norm_cfg=dict(type='LN', eps=1e-6))
    model = build('mmseg', tmp_path / 'x.pth', **cfg)
    with torch.no_grad():
        wanted = as_map(network.forward_features(image))
        assert_same(model(image)[0], wanted)
        torch.save(model.state_dict(), tmp_path / 'y.pth')
        assert_same(build(path=tmp_path / 'y.pth', **VIT)(image)[0], wanted)


@pytest.mark.parametrize('package', ['mmpretrain', 'mmseg'])
def test_positions_are_resized(package, tmp_path, require, monkeypatch):
    """To the model's images, also oblong ones; nothing else is."""
    require(package)
    torch.save(build(**VIT).state_dict(), tmp_path / 'x.pth')
    lines = []
    monkeypatch.setattr(self_sup_pretrained, 'print_log', lambda text, **_: lines.append(text))
    cfg = dict(VIT, img_size=(96, 128))
    if package == 'mmseg':
        sizes = dict(embed_dims=32, num_layers=3, num_heads=4, mlp_ratio=2, img_size=(96, 128))
        cfg = dict(type='VisionTransformer', **sizes, final_norm=True, patch_bias=True)
    model = build(package, tmp_path / 'x.pth', **cfg)
    assert lines[0].endswith('; pos_embed resized from 4×4 to 6×8 patches')
    file = torch.load(tmp_path / 'x.pth')['pos_embed']
    assert torch.equal(model.pos_embed[:, 0], file[:, 0])
    for channel in (0, 31):
        small = file[0, 1:, channel].reshape(1, 1, 4, 4)
        large = torch.nn.functional.interpolate(small, (6, 8), mode='bicubic')
        assert_same(model.pos_embed[0, 1:, channel].reshape(1, 1, 6, 8), large)
    other = dict(VIT, arch=dict(NARROW, embed_dims=64))
    with pytest.raises(CheckpointError, match='of another shape'):
        build(path=tmp_path / 'x.pth', **other)


@pytest.mark.parametrize('version', [1, 2])
def test_convnexts_of_timm(version, image, tmp_path, require):
    require('timm')
    from timm.models.convnext import ConvNeXt

    for conv_mlp in (False, True):
        settings = dict(use_grn=True, ls_init_value=None) if version == 2 else {}
        sizes = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), conv_mlp=conv_mlp)
        network = vary(ConvNeXt(**sizes, **settings))
        torch.save(network.state_dict(), tmp_path / 'x.pth')
        for linear in (False, True):
            cfg = dict(CONVNEXT, linear_pw_conv=linear, **(V2 if version == 2 else {}))
            model = build(path=tmp_path / 'x.pth', **cfg)
            with torch.no_grad():
                wanted = network.forward_features(image).permute(0, 2, 3, 1)
                norm = network.head.norm
                wanted = torch.nn.functional.layer_norm(wanted, (32,), norm.weight, norm.bias, 1e-6)
                assert_same(model(image)[0], wanted.permute(0, 3, 1, 2))


def test_torchvision(image, tmp_path):
    network = vary(
        torchvision.models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64
        )
    )
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    model = build(path=tmp_path / 'x.pth', **VIT)
    with torch.no_grad():
        tokens = network._process_input(image)
        tokens = torch.cat([network.class_token.expand(2, -1, -1), tokens], dim=1)
        assert_same(model(image)[0], as_map(network.encoder(tokens)))
    sizes = [(8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1)]
    blocks = [torchvision.models.convnext.CNBlockConfig(*size) for size in sizes]
    network = vary(torchvision.models.ConvNeXt(blocks))
    torch.save(network.state_dict(), tmp_path / 'y.pth')
    model = build(path=tmp_path / 'y.pth', **CONVNEXT)
    with torch.no_grad():
        assert_same(model(image)[0], network.classifier[0](network.features(image)))


CONFIGS = {
    'ResNet': dict(type='ResNet', depth=50, stem_channels=8, base_channels=8),
    'vision transformer': dict(VIT, layer_scale_init_value=1.0),
    'ConvNeXt': CONVNEXT,
    'MobileNetV2': dict(type='MobileNetV2'),
    'EfficientNet': dict(package='mmdense', type='EfficientNetLite'),
}


@pytest.mark.parametrize('dialect', DIALECTS, ids=lambda d: f'{d.package}: {d.network}')
def test_names_round_trip(dialect):
    """Into each dialect and back; nothing is lost, and the dialect is recognised."""
    tensors = build(**CONFIGS[dialect.network]).state_dict()
    if 'layer_scale' not in str(dialect.names) and 'ls1' not in str(dialect.names):
        tensors = {k: v for k, v in tensors.items() if '.gamma' not in k or 'stages' in k}
    theirs = to_names_of(dialect, tensors)
    assert find_dialect(theirs) == dialect
    ours = to_our_names(theirs)
    assert ours.keys() == tensors.keys()
    assert all(torch.equal(ours[key], value) for key, value in tensors.items())


GOLDEN = Path(__file__).parents[1] / 'golden' / 'transformers'
SMALL = dict(embed_dims=16, num_layers=2, num_heads=4, feedforward_channels=32)
SMALL_CONVNEXT = dict(CONVNEXT, arch=dict(depths=[1, 1, 2, 1], channels=[4, 8, 8, 16]))
TRANSFORMERS = {
    'resnet': None,
    'vit': dict(VIT, arch=SMALL),
    'dinov2': dict(VIT, arch=SMALL, layer_scale_init_value=1.0),
    'convnext': SMALL_CONVNEXT,
    'convnextv2': dict(SMALL_CONVNEXT, **V2),
}


class NarrowResNet(torchvision.models.ResNet):
    """Build a ResNet as transformers does, of other widths than torchvision's."""

    def __init__(self, widths, depths):
        super().__init__(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
        conv = torch.nn.Conv2d
        self.conv1, self.bn1 = conv(3, 8, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(8)
        before = 8
        for i, (width, depth) in enumerate(zip(widths, depths)):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                down = None
                if before != width or stride > 1:
                    down = torch.nn.Sequential(
                        conv(before, width, 1, stride, bias=False), torch.nn.BatchNorm2d(width)
                    )
                block = torchvision.models.resnet.Bottleneck(before, width // 4, stride, down)
                blocks.append(block)
                before = width
            setattr(self, f'layer{i + 1}', torch.nn.Sequential(*blocks))
        self.avgpool = self.fc = torch.nn.Identity()


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_folders_of_transformers(kind):
    """Folders that transformers 5.24 wrote, of a network with a classifier, and what it computes of
    an image (mmpretrain cannot be imported next to that release)."""
    folder, cfg = GOLDEN / kind, TRANSFORMERS[kind]
    wanted = load_file(folder / 'output.safetensors')['last_hidden_state']
    image = torch.linspace(-1, 1, 3 * 64 * 64).sin().reshape(1, 3, 64, 64) * 2
    found = recognise(read_checkpoint(str(folder)))
    assert found.source == 'transformers'
    others = {name.partition('.')[0] for name in found.dropped}
    assert others == {'classifier'} | ({'embeddings'} if kind == 'dinov2' else set())
    assert kind != 'dinov2' or 'embeddings.mask_token' in found.dropped
    if cfg is None:
        model = NarrowResNet([16, 16, 24, 24], [1, 1, 2, 1])
        model.load_state_dict(found.backbone)
        model.eval()
        with torch.no_grad():
            assert_same(model(image).reshape(wanted.shape), wanted)
        return
    model = build(path=folder, **cfg)
    if kind.startswith('convnext'):  # transformers returns the map in front of the last norm
        model.norm3 = torch.nn.Identity()
    with torch.no_grad():
        assert_same(model(image)[0], wanted if wanted.dim() == 4 else as_map(wanted))
