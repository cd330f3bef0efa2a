# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Networks by their tensors: what a file lacks, other packages' names, layers that begin anew."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmdense.apis.inspection import tensor_health
from mmdense.checkpoints import SelfSupPretrained, convert_checkpoint, self_sup_pretrained
from mmdense.checkpoints.formats import Recognised
from mmdense.checkpoints.networks import find_network
from mmdense.utils.errors import CheckpointError

GN, IN = dict(type='GN', num_groups=4), dict(type='IN', affine=True)
NETWORKS = {
    'ResNet-18': dict(type='ResNet', depth=18),
    'ResNet-50, GN': dict(type='ResNet', depth=50, norm_cfg=GN),
    'ResNet-18, IN': dict(type='ResNet', depth=18, norm_cfg=IN),
    'ResNet-18, IN without weights': dict(type='ResNet', depth=18, norm_cfg=dict(type='IN')),
    'ResNet-18, LN': dict(type='ResNet', depth=18, norm_cfg=dict(type='LN2d')),
    'ResNet-50, deep stem': dict(type='ResNetV1c', depth=50),
    'ResNet-50, deep stem, GN': dict(type='ResNetV1d', depth=50, norm_cfg=GN),
    'ResNeXt-50': dict(type='ResNeXt', depth=50),
    'SEResNet-50': dict(type='SEResNet', depth=50),
    'SEResNeXt-50': dict(type='SEResNeXt', depth=50),
    'Res2Net-50': dict(type='Res2Net', depth=50, scales=8, base_width=14, deep_stem=False),
    'ResNeSt-50': dict(type='ResNeSt', depth=50),
    'RegNet-regnetx_400mf': dict(type='RegNet', arch='regnetx_400mf'),
    'HRNet-w18': dict(type='HRNet', arch='w18'),
}


def tensors_of(package='mmpretrain', **cfg):
    with DefaultScope.overwrite_default_scope(package):
        return MODELS.build(dict(cfg, type=f'{package}.{cfg["type"]}')).state_dict()


@pytest.mark.parametrize('name', NETWORKS)
def test_a_complete_network_and_a_cut_one(name):
    tensors = tensors_of(**NETWORKS[name])
    network = find_network(tensors)
    assert network[:3] == (name.split(',')[0], [], [])
    assert not any(note.level == 'error' for note in tensor_health(Recognised('a test', tensors)))
    block = 'stage3.0.branches.0.1.conv1.weight' if 'HRNet' in name else 'layer3.0.conv1.weight'
    cut = {key: value for key, value in tensors.items() if key != block}
    network = find_network(cut)
    assert (network.name, network.missed) == (name.split(',')[0], [block])
    (note,) = [n for n in tensor_health(Recognised('a test', cut)) if n.level == 'error']
    assert note.text == f'not a whole {network.name}: 1 missed: {block}'


def test_it_is_converted(tmp_path):
    tensors = tensors_of(**NETWORKS['HRNet-w18'])
    torch.save(tensors, tmp_path / 'x.pth')
    line = convert_checkpoint(str(tmp_path / 'x.pth'), str(tmp_path / 'out.pth'))
    assert f'{len(tensors)} tensors of an HRNet' in line and '0 missed' in line


def test_of_the_config_of_its_run():
    """Any backbone is compared with the config in the file."""
    backbone = dict(type='mmpretrain.ConvNeXt', arch='atto')
    meta = dict(mmdense=dict(backbone=backbone))
    tensors = tensors_of(type='ConvNeXt', arch='atto')
    assert find_network(tensors, meta) == ('ConvNeXt-atto', [], [], backbone)
    name = next(iter(tensors))
    cut = {key: value for key, value in tensors.items() if key != name}
    assert find_network(cut, meta).missed == [name]
    # the tensors below another prefix are not the config's
    resnet = tensors_of(type='ResNet', depth=18)
    assert find_network(resnet, meta)[:3] == ('ResNet-18', [], [])


def test_others_are_not_judged():
    """Another depth, another width and a network that nobody knows miss nothing."""
    tensors = tensors_of(type='ResNet', depth=18)
    shallow = {key: value for key, value in tensors.items() if not key.startswith('layer3.1.')}
    assert find_network(shallow) is None
    narrow = tensors_of(type='ResNet', depth=18, stem_channels=8, base_channels=8)
    network = find_network(narrow)
    assert not network.missed and len(network.resized) > 50
    assert find_network(dict(tensors, more=torch.ones(1))) is None
    assert find_network({'a.weight': torch.ones(1)}) is None


OTHERS = {
    'VisionTransformer-deit-t': dict(img_size=384, patch_size=32, out_type='featmap'),
    'ConvNeXt-atto': dict(out_indices=(0, 1, 2, 3)),
    'SwinTransformer-t': dict(out_indices=(1, 2, 3)),
    'DeiT3-s': {},
    'EfficientNet-b0': {},
    'MobileNetV2': dict(widen_factor=0.5),
    'MobileNetV3-small': {},
    'HorNet-t': {},
    'PCPVT-s': {},
    'VGG-11': dict(norm_cfg=dict(type='BN')),
}


@pytest.mark.parametrize('name', OTHERS)
def test_networks_of_other_kinds(name, tmp_path):
    """They are recognised by their tensors, whole and cut, and converted; nothing else is said."""
    kind, _, arch = name.partition('-')
    variant = {('depth' if arch.isdigit() else 'arch'): int(arch) if arch.isdigit() else arch}
    tensors = tensors_of(type=kind, **OTHERS[name], **(variant if arch else {}))
    network = find_network(tensors)
    assert network[:3] == (name, [], [])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        again = MODELS.build(network.config).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in tensors.items()}
    torch.save(tensors, tmp_path / 'x.pth')
    line = convert_checkpoint(str(tmp_path / 'x.pth'), str(tmp_path / 'out.pth'))
    assert f'{len(tensors)} tensors of' in line and '0 missed, 0 dropped' in line
    if kind not in ('VisionTransformer', 'ConvNeXt', 'SwinTransformer', 'MobileNetV2'):
        return  # others have the same names: it would take longer
    lost = next(key for key in reversed(list(tensors)) if key.endswith('weight'))
    cut = {key: value for key, value in tensors.items() if key != lost}
    (note,) = [n for n in tensor_health(Recognised('a test', cut)) if n.level == 'error']
    assert note.text == f'not a whole {name}: 1 missed: {lost}'


def test_heads_that_tensors_do_not_show():
    """MoCo v3's ViT-S has 12 heads, others of its size 6: its positions are fixed."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        tensors = MODELS.build(
            dict(type='mmpretrain.VisionTransformer', arch='deit-s')
        ).state_dict()
    tensors['pos_embed'].normal_()
    assert find_network(tensors).config['arch'] == 'deit-s'
    tensors['pos_embed'][0, 0] = 0
    assert find_network(tensors).config['arch']['num_heads'] == 12


def test_groups_that_tensors_do_not_show():
    assert find_network(tensors_of(type='ResNet', depth=18, norm_cfg=GN)).config is None


# ---------------------------------------------------------------- names of other packages


def filled(package, path, **cfg):
    """A network of a package that was filled from a file, in eval mode."""
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=str(path))
    with DefaultScope.overwrite_default_scope(package):
        model = MODELS.build(dict(cfg, type=f'{package}.{cfg["type"]}', init_cfg=init_cfg))
    model.init_weights()
    model.eval()
    return model


def trained(network):
    """The same network with other numbers everywhere, in eval mode."""
    for name, value in network.state_dict().items():
        if value.dim() == 1 and not name.endswith('running_var'):
            value.add_(torch.randn_like(value) * 0.1)
    network.eval()
    return network


@pytest.mark.parametrize('kind, norm', [('ResNetV1c', GN), ('ResNetV1d', dict(type='BN'))])
def test_deep_stems(kind, norm, tmp_path, require):
    """mmpretrain's and mmseg's fill each other, and compute the same."""
    require('mmseg')
    image = torch.randn(1, 3, 64, 64)
    for source, target in (('mmpretrain', 'mmseg'), ('mmseg', 'mmpretrain')):
        with DefaultScope.overwrite_default_scope(source):
            cfg = dict(depth=18, norm_cfg=norm)
            network = trained(MODELS.build(dict(cfg, type=f'{source}.{kind}')))
        torch.save(network.state_dict(), tmp_path / 'x.pth')
        other = filled(target, tmp_path / 'x.pth', type=kind, **cfg)
        torch.testing.assert_close(other(image)[-1], network(image)[-1])


@pytest.mark.parametrize('package', ['mmpretrain', 'mmseg', 'mmdet'])
def test_a_deep_stem_of_timm(package, tmp_path, require):
    require('timm')
    require(package)
    import timm

    network = trained(timm.create_model('resnet18d'))
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    other = filled(package, tmp_path / 'x.pth', type='ResNetV1d', depth=18)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other(image)[-1], network.forward_features(image))


# ---------------------------------------------------------------- layers that begin anew

NARROW = dict(stem_channels=16, base_channels=16)
LATER = (False, False, True, True)
MORE = {
    'DCN': (dict(dcn=dict(type='DCN'), stage_with_dcn=LATER), 'conv2.conv_offset'),
    'DCNv2': (dict(dcn=dict(type='DCNv2'), stage_with_dcn=LATER), 'conv2.conv_offset'),
    'GCNet': (
        dict(
            plugins=[
                dict(cfg=dict(type='ContextBlock', ratio=0.25), stages=LATER, position=position)
                for position in ('after_conv3',)
            ]
        ),
        'context_block',
    ),
    'attention': (
        dict(
            plugins=[
                dict(
                    cfg=dict(type='GeneralizedAttention', spatial_range=-1, attention_type='0010'),
                    stages=LATER,
                    position='after_conv2',
                )
            ]
        ),
        'gen_attention_block',
    ),
}


DETECTORS = {
    'switchable atrous convolutions': (
        dict(
            conv_cfg=dict(type='ConvAWS'),
            sac=dict(type='SAC', use_deform=True),
            stage_with_sac=(False, True, True, True),
        ),
        {'switch', 'weight_diff', 'pre_context', 'post_context', 'offset_s', 'offset_l'}
        | {'weight_gamma', 'weight_beta'},
    ),
    'recursive pyramid': (dict(rfp_inplanes=256), {'rfp_conv'}),
}


@pytest.mark.parametrize('kind', DETECTORS)
def test_layers_of_detectors(kind, tmp_path, require):
    require('mmdet')
    pytest.importorskip('mmcv.ops')
    settings, names = DETECTORS[kind]
    source = tensors_of(type='ResNet', depth=50)
    torch.save(source, tmp_path / 'x.pth')
    model = MODELS.build(
        dict(settings, type='mmdet.DetectoRS_ResNet', depth=50, output_img=True, _scope_='mmdet')
    )
    initialiser = SelfSupPretrained(str(tmp_path / 'x.pth'))
    match = initialiser.match(model)
    model.init_cfg = None
    initialiser(model)
    tensors = model.state_dict()
    assert all(torch.equal(tensors[key], value) for key, value in source.items())
    assert {name.rpartition('.')[2] for name in match.new} == names
    if 'weight_gamma' in names:  # the weights that convolutions use are those of the file
        conv = model.layer1[0].conv1
        weight = conv._get_weight(conv.weight)
        torch.testing.assert_close(weight, source['layer1.0.conv1.weight'], rtol=1e-3, atol=1e-4)


def test_mobilenet_of_mmdet(tmp_path, require):
    require('mmdet')
    pytest.importorskip('mmcv.ops')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = trained(MODELS.build(dict(type='mmpretrain.MobileNetV2', out_indices=(7,))))
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    other = filled('mmdet', tmp_path / 'x.pth', type='MobileNetV2', out_indices=(7,))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other(image)[-1], network(image)[-1])
    # and back
    torch.save(other.state_dict(), tmp_path / 'y.pth')
    line = convert_checkpoint(str(tmp_path / 'y.pth'), str(tmp_path / 'z.pth'))
    assert 'a MobileNetV2 written by' in line and '0 missed' in line
    written = torch.load(tmp_path / 'z.pth', weights_only=False)['state_dict']
    assert written.keys() == network.state_dict().keys()


@pytest.fixture(scope='module')
def resnet50(tmp_path_factory):
    path = tmp_path_factory.mktemp('resnet') / 'r50.pth'
    torch.save(tensors_of(type='ResNet', depth=50, **NARROW), path)
    return path


@pytest.mark.parametrize('kind', MORE)
def test_a_detectors_own_layers_begin_anew(kind, resnet50, require, monkeypatch):
    require('mmdet')
    pytest.importorskip('mmcv.ops')
    settings, name = MORE[kind]
    lines = []
    monkeypatch.setattr(self_sup_pretrained, 'print_log', lambda text, **_: lines.append(text))
    model = filled('mmdet', resnet50, type='ResNet', depth=50, **NARROW, **settings)
    source, tensors = torch.load(resnet50), model.state_dict()
    assert all(torch.equal(tensors[key], value) for key, value in source.items())
    new = {key for key in tensors if key not in source}
    assert new and all(f'.{name}.' in key for key in new)
    match = SelfSupPretrained(str(resnet50)).match(model)
    assert match.new == [f'layer3.{i}.{name}' for i in range(6)] + [
        f'layer4.{i}.{name}' for i in range(3)
    ]
    (line,) = lines
    assert f'all {len(source)} tensors of ResNet filled' in line
    assert f'9 layers begin anew: layer3.0.{name}, ' in line


def test_nothing_else_begins_anew(tmp_path):
    """A layer that the file has in part, or that no one names, is an error."""
    tensors = tensors_of(type='ResNet', depth=18)
    torch.save({k: v for k, v in tensors.items() if 'layer1.0.bn1' not in k}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='missing from the file: layer1.0.bn1'):
        filled('mmpretrain', tmp_path / 'x.pth', type='ResNet', depth=18)
    model = torch.nn.Module()
    model.conv, model.extra = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 4)
    model.scale = torch.nn.Parameter(torch.ones(1))
    torch.save({f'conv.{k}': v for k, v in model.conv.state_dict().items()}, tmp_path / 'y.pth')
    path = str(tmp_path / 'y.pth')
    assert 'extra.bias' in SelfSupPretrained(path, prefix='').match(model).problem
    match = SelfSupPretrained(path, prefix='', new=['extra', 'scale']).match(model)
    assert not match.problem and match.new == ['extra', 'scale']
    # what the file has of it is taken, or refused
    state = dict(torch.load(path), **{'extra.bias': torch.ones(4)})
    torch.save(state, path)
    assert SelfSupPretrained(path, prefix='', new=['extra', 'scale']).match(model).problem
