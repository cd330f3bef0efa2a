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
    """It says which it is, and so does what is exported again; without that nothing is written."""
    cfg = dict(type='ConvNeXt', arch='atto', gap_before_final_norm=False)
    module = build(**cfg)
    config = dict(cfg, type='mmpretrain.ConvNeXt', out_indices=(0, 1, 2, 3))
    save_backbone(module.state_dict(), str(tmp_path / 'a.pth'), backbone=config)
    source = str(tmp_path / 'a.pth')
    for path in (str(tmp_path / 'b.pth'), str(tmp_path / 'c.pth')):
        done = export_checkpoint(source, 'mmpretrain', path)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run_code(done.code)['model']['backbone'])
        model.init_weights()
        model.eval()
        with torch.no_grad():
            for got, wanted in zip(model(image), module(image)):
                torch.testing.assert_close(got, wanted)
        source = path
    save_backbone(module.state_dict(), str(tmp_path / 'old.pth'))
    out = tmp_path / 'd.pth'
    line = refused(capsys, tmp_path / 'old.pth', '--to', 'mmpretrain', '--out', out)
    assert 'holds a backbone of unknown kind' in line and not out.exists()


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
