# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from mmdense.checkpoints import SelfSupPretrained
from mmdense.registry import MODELS


@pytest.fixture(scope='module')
def backbone(random_backbone):
    return random_backbone(50)


@pytest.fixture(scope='module')
def small(random_backbone):
    return random_backbone(18)


def slotcon(backbone):
    """As its authors write it, as far as the names go: the student's numbers are others."""
    model = {f'module.encoder_q.{k}': torch.zeros_like(v) for k, v in backbone.items()}
    model.update({f'module.encoder_k.{k}': v for k, v in backbone.items()})
    model.update({'module.grouping_k.slot_embed.weight': torch.ones(2, 2)})
    return dict(model=model, epoch=800)


@pytest.fixture
def convert(run_here, tmp_path):
    """Runs the tool on a content; its exit code, what it printed, the file that it wrote."""

    def call(content, *flags, source=None):
        if source is None:
            source = tmp_path / 'source.pth'
            torch.save(content, source)
        code, printed = run_here('convert_checkpoint.py', source, tmp_path / 'out.pth', *flags)
        return code, (printed.out if code == 0 else printed.err).strip(), tmp_path / 'out.pth'

    return call


@pytest.fixture(scope='module')
def converted(backbone, tmp_path_factory):
    """A ResNet-50 that was converted."""
    from mmdense.checkpoints import convert_checkpoint

    folder = tmp_path_factory.mktemp('converted')
    torch.save(slotcon(backbone), folder / 'source.pth')
    line = convert_checkpoint(str(folder / 'source.pth'), str(folder / 'new' / 'backbone.pth'))
    path = folder / 'new' / 'backbone.pth'
    assert line == (
        f'{path}: 318 tensors of a ResNet-50 written by SlotCon mapped, 0 missed, 319 dropped '
        '(encoder_q 318, grouping_k 1)'
    )
    return str(path)


def assert_filled(model, backbone):
    tensors = model.state_dict()
    assert tensors.keys() == backbone.keys()
    for key, value in tensors.items():
        assert torch.equal(value, backbone[key]), key


@pytest.mark.parametrize('package', ['mmpretrain', 'mmdet', 'mmseg'])
@pytest.mark.parametrize('init_cfg', ['Pretrained', 'mmdense.SelfSupPretrained'])
def test_loads_in_openmmlab(converted, backbone, package, init_cfg, require):
    """MMEngine's own initialiser too."""
    require(package)
    with DefaultScope.overwrite_default_scope(package):
        init_cfg = dict(type=init_cfg, checkpoint=converted)
        model = ROOT.build(dict(type=f'{package}.ResNet', depth=50, init_cfg=init_cfg))
        model.init_weights()
    assert_filled(model, backbone)


@pytest.mark.parametrize('package', ['torchvision', 'timm'])
def test_loads_strictly_in_torchvision_and_timm(converted, backbone, package, require):
    require(package)
    if package == 'timm':
        import timm

        model = timm.create_model('resnet50')
    else:
        from torchvision.models import resnet50

        model = resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(converted, weights_only=True)['state_dict'])
    assert_filled(model, backbone)


def test_old_files_without_counters(convert, small):
    tensors = {k: v for k, v in small.items() if 'num_batches' not in k}
    code, line, out = convert(dict(state_dict=dict(tensors, **{'fc.weight': torch.ones(2)})))
    assert code == 0
    assert '100 tensors of a ResNet-18 written by torchvision mapped, 0 missed, 1 dropped' in line
    assert torch.load(out)['state_dict'].keys() == tensors.keys()


@pytest.mark.parametrize('lost', ['layer2.', 'layer4.', 'layer3.1.conv1.weight', 'bn1.'])
def test_missed_tensors(convert, small, lost):
    tensors = {k: v for k, v in small.items() if not k.startswith(lost)}
    names = [k for k in small if k.startswith(lost) and 'num_batches' not in k]
    code, line, out = convert(tensors)
    assert code == 1 and not out.exists() and len(line.splitlines()) == 1
    assert f'{len(tensors)} tensors of' in line and f'{len(names)} missed' in line
    assert f'A ResNet-18 has also {min(names)}' in line and 'nothing was written' in line


def test_deep_stems_miss_nothing(convert):
    for kind in ('ResNetV1c', 'ResNetV1d'):
        tensors = ROOT.build(dict(type=f'mmpretrain.{kind}', depth=50)).state_dict()
        code, line, _ = convert(tensors)
        assert code == 0 and 'a ResNet-50 with a deep stem' in line and '0 missed' in line


@pytest.mark.parametrize('kind', ['c', 'd'])
def test_a_deep_stem_of_timm_gets_the_names_of_mmpretrain(kind, convert, require):
    require('timm')
    import timm

    network = timm.create_model(f'resnet50{kind}').eval()
    code, line, out = convert(network.state_dict())
    assert code == 0 and 'a ResNet-50 with a deep stem' in line and '0 missed' in line
    ours = ROOT.build(dict(type=f'mmpretrain.ResNetV1{kind}', depth=50))
    ours.eval()
    ours.load_state_dict(torch.load(out, weights_only=False)['state_dict'])
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(image)[-1], network.forward_features(image))


def test_the_line_names_the_network_that_was_compared(convert):
    cfg = dict(type='mmpretrain.ResNeXt', depth=50, groups=32, width_per_group=4)
    code, line, _ = convert(ROOT.build(cfg).state_dict())
    assert code == 0 and 'of a ResNeXt-50 written' in line and '0 missed' in line


def test_a_network_without_its_first_stage_is_no_last_stage(small, convert):
    rest = {k: v for k, v in small.items() if not k.startswith('layer1')}
    others = {k.replace('layer1.', 'x.layer1.'): v for k, v in small.items()}
    for tensors in (rest, others):
        code, line, out = convert(tensors)
        assert code == 1 and not out.exists(), line


def test_what_fits_nothing_is_not_written(convert):
    """The remedy of the line works."""
    code, line, out = convert({'a.weight': torch.ones(2), 'b.weight': torch.ones(3)})
    assert code == 1 and not out.exists()
    assert 'no network is known that has such tensors, so nothing was written. --prefix' in line
    code, line, out = convert(None, '--prefix', '', source=out.with_name('source.pth'))
    assert code == 0 and '2 tensors of' in line and 'not compared with a network' in line
    assert len(torch.load(out)['state_dict']) == 2


def test_networks_of_other_packages_that_fit_nothing(convert, require):
    """A DenseNet has transitions as an HRNet, timm's networks have its names."""
    require('timm')
    import timm
    import torchvision

    for network in (
        torchvision.models.densenet121(),
        timm.create_model('swin_tiny_patch4_window7_224'),
        timm.create_model('seresnet18'),
        timm.create_model('hrnet_w18_small'),
    ):
        code, line, out = convert(network.state_dict())
        assert code == 1 and not out.exists()
        assert 'no network is known that has such tensors, so nothing was written. --pref' in line
    assert 'an HRNet' in line


def test_safetensors(convert, small, tmp_path, run_here):
    """They are read, and written where the file is called so; what a run says of itself stays."""
    from mmdense.checkpoints import convert_checkpoint, read_checkpoint

    meta = dict(mmdense=dict(algorithm='Any', version='1'), epoch=7)
    torch.save(dict(state_dict=small, meta=meta), tmp_path / 'a.pth')
    path = str(tmp_path / 'b.safetensors')
    assert '0 missed' in convert_checkpoint(str(tmp_path / 'a.pth'), path)
    content = read_checkpoint(path)
    assert content['meta']['mmdense']['epoch'] == 7
    tensors = content['state_dict']
    assert tensors.keys() == small.keys()
    assert all(torch.equal(tensors[key], value) for key, value in small.items())
    safetensors = pytest.importorskip('safetensors.torch')
    assert safetensors.load_file(path).keys() == small.keys()
    assert '0 missed' in convert_checkpoint(path, str(tmp_path / 'c.pth'))
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'b.safetensors').read_bytes()[:-5])
    code, line, _ = convert(None, source=tmp_path / 'cut.safetensors')
    assert code == 1 and 'is damaged or cut short' in line
    folder = tmp_path / 'hub'
    folder.mkdir()
    (tmp_path / 'b.safetensors').rename(folder / 'model.safetensors')
    code, line, _ = convert(None, source=folder)
    assert code == 1 and f'is a directory: take {folder / "model.safetensors"}' in line
    assert convert(None, source=folder / 'model.safetensors')[0] == 0


def test_prefix(convert, small):
    state = {f'backbone.{k}': v for k, v in small.items()}
    state['decode_head.conv_seg.weight'] = torch.ones(1)
    code, line, out = convert(dict(state_dict=state))
    assert code == 1 and 'source.pth is a checkpoint of another task (decode_head)' in line
    assert "prefix='backbone' takes its backbone" in line and not out.exists()
    code, line, out = convert(dict(state_dict=state), '--prefix', 'backbone')
    assert code == 0 and '1 dropped (decode_head 1)' in line
    assert torch.load(out)['state_dict'].keys() == small.keys()


def test_bad_input(convert, small, run_here, tmp_path):
    small = dict(small)
    code, line, out = convert([1, 2])
    assert code == 1 and 'source.pth holds no tensors by name' in line
    small['layer1.0.bn1.running_mean'] = small['layer1.0.bn1.running_mean'] * float('nan')
    code, line, out = convert(small)
    assert code == 1 and 'source.pth holds NaN' in line and 'layer1.0.bn1.running_mean' in line
    assert not out.exists()
    code, line, out = convert(None, source=tmp_path / 'nowhere.pth')
    assert code == 1 and 'nowhere.pth does not exist' in line
    source = tmp_path / 'source.pth'
    code, printed = run_here('convert_checkpoint.py', source, source)
    assert code == 1 and 'is the checkpoint itself: name another file' in printed.err


def test_an_interrupted_conversion_leaves_the_old_file(convert, small, monkeypatch):
    assert convert(small)[0] == 0
    writes = torch.save

    def disk_full(content, path):
        writes(dict(cut='short'), path)
        raise OSError(28, 'No space left on device')

    source = convert(small)[2].with_name('source.pth')
    monkeypatch.setattr(torch, 'save', disk_full)
    code, line, out = convert(None, source=source)
    assert code == 1 and 'No space left' in line
    assert torch.load(out)['state_dict'].keys() == small.keys()


def test_from_a_url(convert, small, server, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'weights.pth'
    torch.save(dict(meta=dict(epoch=7), state_dict=small), path)
    code, line, out = convert(None, source=server.put(path.name, path.read_bytes()))
    assert code == 0, line
    about = torch.load(out, weights_only=True)['meta']['mmdense']
    assert about == dict(writer='torchvision', epoch=7, product='')


def test_whole(convert, random_backbone, tmp_path):
    """In our names, which go on training; and from such a file, the backbone."""
    mlp = dict(type='ProjectionMLP', hid_channels=8, out_channels=6)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(
            dict(
                type='PixPro',
                backbone=dict(type='mmpretrain.ResNet', depth=18),
                neck=dict(mlp, in_channels=512),
                head=dict(type='PixProHead', in_channels=6),
            )
        )
    state = {f'encoder.{k}': v for k, v in random_backbone(18).items()}
    state.update({f'encoder_k.{k}': v for k, v in random_backbone(18).items()})
    for branch in ('projector', 'projector_k'):
        for name, layer in (('linear1', 0), ('bn1', 1), ('linear2', 3)):
            for key, value in model.neck.mlp[layer].state_dict().items():
                state[f'{branch}.{name}.{key}'] = torch.rand(value.shape).to(value)
    state['value_transform.weight'] = torch.rand(6, 6, 1, 1)
    state['value_transform.bias'] = torch.rand(6)
    content = dict(model={f'module.{k}': v for k, v in state.items()}, epoch=100)
    code, line, out = convert(content, '--whole')
    assert code == 0 and f'{len(state) + 1} tensors of the complete algorithm mapped' in line
    meta = torch.load(out, weights_only=True)['meta']['mmdense']
    assert meta['algorithm'] == 'PixPro' and meta['product'] == 'backbone'
    SelfSupPretrained(str(out))(model)
    filled = model.state_dict()
    assert torch.equal(filled['backbone.conv1.weight'], state['encoder.conv1.weight'])
    twin = filled['encoder_k.module.neck.mlp.3.weight']
    assert torch.equal(twin, state['projector_k.linear2.weight'])

    again = out.rename(tmp_path / 'whole.pth')
    code, line, out = convert(None, source=again)
    assert code == 0 and '120 tensors of a ResNet-18 written by mmdense PixPro' in line


def test_whole_of_what_is_not(convert, small):
    code, line, out = convert(small, '--whole')
    assert code == 1 and 'does not hold a complete algorithm' in line and not out.exists()
