# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Files for other software compute what the checkpoint's backbone does."""

import resource
import signal
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmdense.checkpoints import save_backbone, targets
from mmdense.checkpoints.targets import TARGETS, export_checkpoint
from mmdense.cli import build_parser, main
from mmdense.utils.errors import CheckpointError, MMDenseError
from mmdense.utils.log_level import log_level


@pytest.fixture(autouse=True)
def no_list_of_tensors():
    """MMEngine logs each that it initialises."""
    with log_level('ERROR'):
        yield


def randomize(module):
    """Statistics and scales that no new network has; features stay of moderate size."""
    for name, value in module.state_dict().items():
        if name.endswith('running_var') or value.dim() == 1 and name.endswith('weight'):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1 and value.is_floating_point():
            value.uniform_(-0.5, 0.5)
    return module


def build(**cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        module = randomize(MODELS.build(dict(cfg, out_indices=(0, 1, 2, 3))))
    module.eval()
    return module


def save(module, path, config=None):
    """As mmpretrain writes a run's checkpoint."""
    state = {f'backbone.{key}': value for key, value in module.state_dict().items()}
    state['neck.weight'] = torch.ones(2)
    meta = {} if config is None else dict(cfg=f'model = dict(backbone={config!r})')
    torch.save(dict(meta=meta, state_dict=state), path)
    return str(path)


@pytest.fixture(scope='module')
def resnet():
    return build(type='ResNet', depth=18)


@pytest.fixture
def checkpoint(resnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save(resnet, tmp_path / 'epoch_1.pth')


@pytest.fixture(scope='module')
def image():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def run_code(code, **names):
    """What the printed lines define."""
    exec(code, names)
    return names


def features(model, image):
    """Of torchvision's and timm's ResNets, the last stage's."""
    model.eval()
    kept = []
    handle = model.layer4.register_forward_hook(lambda *a: kept.append(a[2]))
    with torch.no_grad():
        model(image)
    handle.remove()
    return kept[0]


def test_targets_are_those_of_the_command():
    (commands,) = (a for a in build_parser()._actions if a.dest == 'command')
    (to,) = (a for a in commands.choices['export']._actions if a.dest == 'to')
    assert to.choices == list(TARGETS)


@pytest.mark.parametrize('target', ['torchvision', 'onnx'])
def test_a_file_that_cannot_be_written(target, checkpoint, tmp_path, capsys, require):
    if target == 'onnx':
        require('onnxruntime')
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as ended:
        main(['export', checkpoint, '--to', target, '--out', 'file/x.pth'])
    assert ended.value.code == 1
    error = f'cannot write file/x.pth: {tmp_path}/file is no folder'
    assert capsys.readouterr().err == f'mmdense: error: {error}\n'


def test_a_disk_that_is_full(checkpoint, tmp_path):
    """torch.save would say something of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(MMDenseError, match='cannot write x.pth: File too large'):
            export_checkpoint(checkpoint, 'torchvision', 'x.pth')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']


@pytest.mark.parametrize('target', ['torchvision', 'timm'])
def test_the_printed_line_loads_it(target, checkpoint, resnet, image, capsys, require):
    require(target)
    main(['export', checkpoint, '--to', target])
    printed = capsys.readouterr()
    assert f'epoch_1_{target}.pth: 120 tensors of a ResNet-18' in printed.err
    assert f'epoch_1_{target}.pth' in printed.out
    model = run_code(printed.out)['model']
    with torch.no_grad():
        wanted = resnet(image)[-1]
    torch.testing.assert_close(features(model, image), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 8])
@pytest.mark.parametrize('target', ['torchvision', 'timm'])
def test_other_bands_than_three(target, channels, tmp_path, monkeypatch, capsys, require):
    require(target)
    monkeypatch.chdir(tmp_path)
    net = build(type='ResNet', depth=18, in_channels=channels)
    main(['export', save(net, tmp_path / 'x.pth'), '--to', target])
    model = run_code(capsys.readouterr().out)['model']
    image = torch.rand(1, channels, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(model, image), net(image)[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'name, cfg',
    [
        ('resnet50', dict(type='ResNet', depth=50)),
        pytest.param(
            'resnext50_32x4d',
            dict(type='ResNeXt', depth=50, groups=32, width_per_group=4),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_network_is_known_by_its_tensors(name, cfg, image, tmp_path):
    module = build(**cfg)
    done = export_checkpoint(
        save(module, tmp_path / 'a.pth'), 'torchvision', str(tmp_path / 'b.pth')
    )
    assert f'torchvision.models.{name}()' in done.code
    model = run_code(done.code)['model']
    with torch.no_grad():
        wanted = module(image)[-1]
    torch.testing.assert_close(features(model, image), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'cfg, has_config',
    [
        (dict(type='ResNet', depth=18), True),
        (dict(type='ResNet', depth=18), False),
        (dict(type='ResNetV1c', depth=18), True),
        (dict(type='ResNetV1c', depth=18), False),
        (dict(type='SwinTransformer', arch='tiny', img_size=64, pad_small_map=True), True),
    ],
)
def test_mmpretrain(cfg, has_config, image, tmp_path):
    """Loads by MMEngine's own initialiser, from the line that was printed."""
    module = build(**cfg)
    source = save(module, tmp_path / 'a.pth', cfg if has_config else None)
    done = export_checkpoint(source, 'mmpretrain', str(tmp_path / 'new' / 'b.pth'))
    backbone = run_code(done.code)['model']['backbone']
    assert backbone['init_cfg'] == dict(type='Pretrained', checkpoint=done.path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(backbone, out_indices=(0, 1, 2, 3)))
    model.init_weights()
    model.eval()
    with torch.no_grad():
        for got, wanted in zip(model(image), module(image)):
            torch.testing.assert_close(got, wanted)


def test_mmpretrain_of_an_exported_backbone(image, tmp_path, capsys):
    """It says which it is, and so does what is exported again; without that its tensors do, and
    where they do not, nothing is written."""
    cfg = dict(type='ConvNeXt', arch='atto', gap_before_final_norm=False)
    module = build(**cfg)
    config = dict(cfg, type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3))
    save_backbone(module.state_dict(), str(tmp_path / 'a.pth'), backbone=config)
    save_backbone(module.state_dict(), str(tmp_path / 'old.pth'))
    source = str(tmp_path / 'a.pth')
    for path in (str(tmp_path / 'b.pth'), str(tmp_path / 'c.pth'), str(tmp_path / 'd.pth')):
        done = export_checkpoint(source, 'mmpretrain', path)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run_code(done.code)['model']['backbone'])
        model.init_weights()
        model.eval()
        with torch.no_grad():
            for got, wanted in zip(model(image), module(image)):
                torch.testing.assert_close(got, wanted)
        source = path if path.endswith('b.pth') else str(tmp_path / 'old.pth')
    cfg = dict(type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=4))
    source, out = save(build(**cfg), tmp_path / 'groups.pth'), tmp_path / 'e.pth'
    line = refused(capsys, source, '--to', 'mmpretrain', '--out', out)
    assert 'holds a backbone of unknown kind' in line and not out.exists()


TIMM = [
    dict(type='VisionTransformer', arch='deit-t', img_size=64, out_type='featmap'),
    dict(
        type='VisionTransformer',
        arch=dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64),
        img_size=64,
        out_type='featmap',
        out_indices=(0, 1, 2, 3),
        layer_scale_init_value=0.1,
    ),
    dict(type='ConvNeXt', arch='atto', gap_before_final_norm=False),
    dict(type='ConvNeXt', arch='atto', gap_before_final_norm=False, linear_pw_conv=False),
    dict(
        type='ConvNeXt',
        arch='atto',
        gap_before_final_norm=False,
        use_grn=True,
        layer_scale_init_value=0.0,
    ),
]


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize('cfg', TIMM, ids=range(len(TIMM)))
def test_timm_of_other_kinds(cfg, ending, tmp_path, require):
    """Vision transformers and ConvNeXts: the printed lines build them, and load them strictly."""
    require('timm')
    cfg = dict(dict(out_indices=(0, 1, 2, 3)) if cfg['type'] == 'ConvNeXt' else {}, **cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        module = randomize(MODELS.build(cfg))
    module.eval()
    source = save(module, tmp_path / 'a.pth', cfg)
    done = export_checkpoint(source, 'timm', str(tmp_path / f'b.{ending}'))
    model = run_code(done.code)['model'].eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found, wanted = model.forward_features(x), module(x)[-1]
        if cfg['type'] == 'ConvNeXt':
            found = model.head.norm(found)
            assert 'dropped (norm0 2, norm1 2, norm2 2, ' in done.about  # and the neck
        else:
            found = found[:, 1:].transpose(1, 2).reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


DETECTRON2 = [
    (dict(type='ResNet', depth=18), dict(DEPTH=18, WIDTH_PER_GROUP=64, RES2_OUT_CHANNELS=64)),
    (dict(type='ResNet', depth=50), dict(NUM_GROUPS=1, WIDTH_PER_GROUP=64, RES2_OUT_CHANNELS=256)),
    (dict(type='ResNet', depth=50, style='caffe'), dict(DEPTH=50, STRIDE_IN_1X1=True)),
    (dict(type='ResNeXt', depth=50), dict(NUM_GROUPS=32, WIDTH_PER_GROUP=4, STRIDE_IN_1X1=False)),
]


@pytest.mark.parametrize('cfg, settings', DETECTRON2)
def test_detectron2(cfg, settings, image, tmp_path, monkeypatch):
    """The file is as detectron2 reads it, in its names, and is read back; the printed config is of
    the same network. detectron2 itself is not needed."""
    import pickle

    import yaml

    monkeypatch.chdir(tmp_path)
    module = build(**cfg)
    done = export_checkpoint(save(module, 'a.pth', cfg), 'detectron2')
    assert done.path == 'a_detectron2.pkl' and '0 missed' in done.about
    with open(done.path, 'rb') as file:
        content = pickle.load(file, encoding='latin1')
    assert content['matching_heuristics'] is True and content['__author__'] == 'mmdense'
    names, tensors = set(content['model']), module.state_dict()
    assert all(isinstance(value, np.ndarray) for value in content['model'].values())
    assert len(names) == len(tensors) and all(n.split('.')[0] in STAGES for n in names)
    weight = content['model']['res3.0.shortcut.norm.weight']
    assert np.array_equal(weight, tensors['layer2.0.downsample.1.weight'].numpy())
    assert np.array_equal(content['model']['stem.conv1.norm.bias'], tensors['bn1.bias'].numpy())
    config = yaml.safe_load(done.code)
    assert config['MODEL']['WEIGHTS'] == done.path and config['INPUT'] == dict(FORMAT='RGB')
    assert config['MODEL']['PIXEL_MEAN'] == [123.675, 116.28, 103.53]
    assert settings.items() <= config['MODEL']['RESNETS'].items()
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=done.path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        again = MODELS.build(dict(cfg, out_indices=(0, 1, 2, 3), init_cfg=init_cfg))
    again.init_weights()
    again.eval()
    with torch.no_grad():
        for found, wanted in zip(again(image), module(image)):
            torch.testing.assert_close(found, wanted)


STAGES = ('stem', 'res2', 'res3', 'res4', 'res5')


@pytest.mark.parametrize(
    'target, cfg, reason',
    [
        (
            'timm',
            dict(type='SwinTransformer', arch='tiny', img_size=64),
            'is no ResNet, vision',
        ),
        ('detectron2', dict(type='SwinTransformer', arch='tiny', img_size=64), 'is no ResNet with'),
        ('detectron2', dict(type='ResNetV1d', depth=50), 'is no ResNet with a plain stem'),
        (
            'detectron2',
            dict(type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=32)),
            'and BatchNorm',
        ),
        ('detectron2', dict(type='SEResNet', depth=50), 'is no ResNet with a plain stem'),
    ],
)
def test_other_networks_are_refused(target, cfg, reason, tmp_path, capsys):
    """Nothing is written, and the way that the line offers works."""
    source = save(build(**cfg), tmp_path / 'a.pth', cfg)
    out = tmp_path / 'b.pkl'
    line = refused(capsys, source, '--to', target, '--out', out)
    assert reason in line and '--to mmpretrain' in line and not out.exists()
    assert export_checkpoint(source, 'mmpretrain', str(tmp_path / 'c.pth'))


def test_no_way_that_does_not_work(tmp_path, capsys):
    """Without a config nobody knows the groups: the run's checkpoint is offered, and works."""
    cfg = dict(type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=4))
    module = build(**cfg)
    source, out = save(module, tmp_path / 'a.pth'), str(tmp_path / 'b.pkl')
    for target in ('torchvision', 'timm', 'detectron2', 'mmpretrain'):
        line = refused(capsys, source, '--to', target, '--out', out)
        assert 'Export a checkpoint of the run' in line and '--to mmpretrain' not in line
    run = save(module, tmp_path / 'epoch_1.pth', cfg)
    assert 'num_groups' in export_checkpoint(run, 'mmpretrain', str(tmp_path / 'c.pth')).code


@pytest.mark.parametrize('target, ending', [('detectron2', '.pkl'), ('onnx', '.onnx')])
def test_the_ending_of_a_target(target, ending, checkpoint, tmp_path, capsys):
    line = refused(capsys, checkpoint, '--to', target, '--out', tmp_path / 'b.safetensors')
    assert f'must end in {ending}' in line and not (tmp_path / 'b.safetensors').exists()


@pytest.mark.parametrize('target', ['torchvision', 'timm', 'mmpretrain'])
def test_safetensors(target, checkpoint, resnet, image, tmp_path, require):
    """The printed lines load them."""
    require('timm')
    done = export_checkpoint(checkpoint, target, str(tmp_path / 'new.safetensors'))
    model = run_code(done.code)['model']
    with torch.no_grad():
        wanted = resnet(image)[-1]
    if target == 'mmpretrain':
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(model['backbone'])
        model.init_weights()
        model.eval()
        torch.testing.assert_close(model(image)[-1], wanted)
    else:
        torch.testing.assert_close(features(model, image), wanted, rtol=1e-4, atol=1e-5)


def test_the_config_of_a_run_goes_along(tmp_path):
    """From its checkpoint into the exported file; none of its paths does."""
    cfg = dict(type='SwinTransformer', arch='tiny', img_size=64)
    module = build(**cfg)
    init_cfg = dict(type='Pretrained', checkpoint='/home/me/a.pth')
    source = save(module, tmp_path / 'a.pth', dict(cfg, init_cfg=init_cfg))
    done = export_checkpoint(source, 'mmpretrain', str(tmp_path / 'b.pth'))
    meta = torch.load(done.path, weights_only=True)['meta']
    assert meta['mmdense']['backbone'] == cfg and '/home' not in str(meta)


def test_onnx(checkpoint, resnet, image, capsys, require):
    """Four stages, of any batch and size."""
    require('onnx')
    require('onnxruntime')
    main(['export', checkpoint, '--to', 'onnx', '--size', '64', '96', '--out', 'new/r18.onnx'])
    printed = capsys.readouterr()
    assert 'new/r18.onnx: ResNet-18' in printed.err and 'differ by' in printed.err
    assert 'RGB, (pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]' in printed.out
    for x in (image, image[:1, :, :63, :33]):
        found = run_code(printed.out, image=x.numpy())
        with torch.no_grad():
            for name, wanted in zip(('c2', 'c3', 'c4', 'c5'), resnet(x)):
                scale = float(wanted.abs().max())
                np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-4 * scale)


def test_an_onnx_file_that_computes_something_else(checkpoint, tmp_path, monkeypatch, require):
    require('onnx')
    require('onnxruntime')
    real = targets._write_onnx

    def write(stages, *args):
        real(stages, *args)
        stages.backbone.layer4[1].bn2.bias.data += 0.1

    monkeypatch.setattr(targets, '_write_onnx', write)
    with pytest.raises(CheckpointError, match='onnxruntime and PyTorch differ by'):
        export_checkpoint(checkpoint, 'onnx', str(tmp_path / 'a.onnx'), size=(64, 64))
    assert not list(tmp_path.glob('a.onnx*'))


def test_from_a_url(checkpoint, server, tmp_path, monkeypatch, require):
    require('onnxruntime')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'cache'))
    url = server.put('r18.pth', (tmp_path / 'epoch_1.pth').read_bytes())
    assert export_checkpoint(url, 'timm').path == 'r18_timm.pth'
    assert export_checkpoint(url, 'onnx', size=(32, 32)).path == 'r18_onnx.onnx'
    assert len(server.asked) == 1


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(['export', *map(str, arguments)])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count('\n') == 1, printed
    return printed.err


@pytest.mark.parametrize('target', ['torchvision', 'timm'])
@pytest.mark.parametrize(
    'cfg, reason',
    [
        (dict(type='ResNetV1d', depth=50), 'has a deep stem'),
        (dict(type='SwinTransformer', arch='tiny', img_size=64), 'is no ResNet'),
        (dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 'has other tensors'),
        (dict(type='ResNet', depth=50, style='caffe'), "style='caffe'"),
    ],
)
def test_networks_that_the_target_has_not(target, cfg, reason, capsys, tmp_path):
    source = save(build(**cfg), tmp_path / 'a.pth', cfg)
    line = refused(capsys, source, '--to', target, '--out', tmp_path / 'b.pth')
    assert reason in line and 'Export it --to mmpretrain' in line
    assert not (tmp_path / 'b.pth').exists()


def test_onnx_of_what_is_no_resnet(capsys, tmp_path, require):
    require('onnxruntime')
    cfg = dict(type='SwinTransformer', arch='tiny', img_size=64)
    source = save(build(**cfg), tmp_path / 'a.pth', cfg)
    assert 'of ResNets only' in refused(capsys, source, '--to', 'onnx')


def test_mistakes(checkpoint, capsys, monkeypatch):
    assert 'nowhere.pth does not exist' in refused(capsys, 'nowhere.pth', '--to', 'timm')
    line = refused(capsys, checkpoint, '--to', 'timm', '--out', checkpoint)
    assert 'is the checkpoint itself' in line
    if 'onnxruntime' not in sys.modules:
        pytest.importorskip('onnxruntime')
    line = refused(capsys, checkpoint, '--to', 'onnx', '--size', 8, 8)
    assert 'at least 32 pixels' in line
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert 'pip install onnx onnxruntime' in refused(capsys, checkpoint, '--to', 'onnx')
