# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense pretrain`` and ``mmdense plan``, as they are typed."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
import torch
from mmengine.config import Config
from mmpretrain.models import ResNet
from mmpretrain.registry import MODELS
from tiny_algorithms import algorithms_of, first_where, tiny_form

from mmdense.apis.planning import METHODS
from mmdense.apis.report.report import write_report
from mmdense.cli import main
from mmdense.engine.launch import train
from mmdense.engine.training import prepare_training, train_parser

EXAMPLE = tiny_form()
PATCHES = first_where(lambda kind: kind.views.patches)
OTHER = tiny_form(algorithms_of('momentum')[0]).method


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A command in this process, in an empty folder: exit code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)

    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def on_a_terminal(command, cwd, ctrl_c_after):
    """Runs a command with a terminal of its own and types Ctrl-C once it has
    printed something: exit code, what the terminal showed, less its colours."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update(TERM='xterm-256color', COLUMNS='400')
        os.execv(command[0], [str(c) for c in command])
    shown, typed = '', False
    while True:
        try:
            got = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not got:
            break
        shown += got.decode(errors='replace')
        if not typed and re.search(ctrl_c_after, shown):
            typed = True
            os.write(terminal, b'\x03')
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.WEXITSTATUS(status), re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', shown)


def test_pretrains(repo, run, images, tmp_path, monkeypatch):
    """Interrupted at the terminal and resumed, from the command or from the config that it wrote:
    the same weights, to the last bit."""
    monkeypatch.setenv('PYTHONPATH', str(repo))
    out = tmp_path / 'run'
    command = [sys.executable, '-m', 'mmdense', 'pretrain', images, '--out', out]
    command += ['--backbone', 'resnet18', '--epochs', '3', '--workers', '1']
    code, shown = on_a_terminal(command, str(tmp_path), r'epoch 2/3.*images/s')
    assert code == 130, shown
    assert 'setting      value' in shown and 'images are of 72 px' in shown
    assert re.search(r'epoch 1/3 .* [\d.]+ images/s loss [\d.]+ 0:\d\d:\d\d', shown)
    answer = shown.index('Ctrl-C: the running iteration ends, a checkpoint is saved')
    assert answer < shown.index('SIGINT: saved')
    assert re.search(rf'SIGINT: saved {out}/iter_\d+\.pth and ended; --resume continues', shown)
    assert 'System environment' not in shown and 'Epoch(train)' not in shown
    assert 'Traceback' not in shown and not (out / 'backbone.pth').exists()
    text = (out / 'config.py').read_text()

    done = run(*command, '--resume', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f'Resuming with {out}/config.py as it is.' in done.stdout
    assert 'Epoch(train) [3][4/4]' in done.stdout and 'images/s' not in done.stdout
    assert 'System environment' not in done.stdout and 'WARNING' not in done.stdout
    where, mmdet, mmseg = done.stdout.splitlines()[-3:]
    assert where == f'The backbone is {out}/backbone.pth; in a config of mmdet, or of mmseg:'
    for line in (mmdet, mmseg):
        scope = {}
        exec(line, scope)
        init = scope['model']['backbone']['init_cfg']
        assert init == dict(type='mmdense.SelfSupPretrained', checkpoint=f'{out}/backbone.pth')
        assert scope['model']['backbone']['depth'] == 18
    # MMEngine's own copy is beside it
    assert (out / 'config.py').read_text() == text
    assert Config.fromfile(str(out / 'config_whole.py')).model.backbone.depth == 18

    # what the report shows of epochs whose checkpoints may be gone
    assert sorted(os.listdir(out / 'snapshots')) == ['epoch_1.pth', 'epoch_2.pth']
    kept = torch.load(out / 'snapshots' / 'epoch_2.pth', weights_only=True)['state_dict']
    whole = torch.load(out / 'epoch_2.pth', weights_only=False)['state_dict']
    assert kept['conv1.weight'].dtype == torch.half
    for name, value in kept.items():
        torch.testing.assert_close(
            value.float(), whole[f'backbone.{name}'].float(), rtol=1e-3, atol=1e-6
        )
    os.remove(out / 'epoch_1.pth')
    page = Path(write_report(str(out))).read_text()
    assert all(f'epoch {i} (' in page for i in (1, 2, 3)) and 'Not on this page' not in page

    again = tmp_path / 'again'
    done = run(sys.executable, repo / 'tools/train.py', out / 'config.py', '--work-dir', again)
    assert done.returncode == 0, done.stdout
    one, two = (
        torch.load(folder / 'backbone.pth', weights_only=True)['state_dict']
        for folder in (out, again)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_two_processes(run, images, tmp_path):
    """By torch.distributed.run, here without a GPU."""
    command = [sys.executable, '-m', 'mmdense', 'pretrain', images, '--out', tmp_path / 'run']
    command += ['--backbone', 'resnet18', '--epochs', '1', '--gpus', '2', '--workers', '0']
    done = run(*command)
    assert done.returncode == 0, done.stdout
    assert re.search(r'^batch +2 × 2 ', done.stdout, re.M)
    assert 'Epoch(train) [1][4/4]' in done.stdout
    # what precedes the first step is in the log file, as with one process
    assert 'System environment' not in done.stdout and 'OMP_NUM_THREADS' not in done.stdout
    assert any('System environment' in p.read_text() for p in (tmp_path / 'run').rglob('*.log'))
    assert not re.search(r'WARNING|Warning', done.stdout), done.stdout
    assert done.stdout.splitlines()[-3].startswith(f'The backbone is {tmp_path}/run/backbone.pth')
    assert (tmp_path / 'run' / 'backbone.pth').exists()
    command[command.index(tmp_path / 'run')] = tmp_path / 'quiet'
    done = run(*command, '--quiet')
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stdout


def test_quiet(call, images, tmp_path):
    """Results alone."""
    arguments = ['--backbone', 'resnet18', '--epochs', '1', '--workers', '0', '--batch-size', '8']
    code, out, err = call('pretrain', images, '-q', '--out', 'run', *arguments)
    assert (code, err) == (0, '')
    assert len(out.splitlines()) == 3 and out.startswith(f'The backbone is {tmp_path}/run/backbone')
    # a run that is there stays
    for there in ('epoch_1.pth', 'backbone.pth'):
        code, out, err = call('pretrain', images, '--out', 'run', *arguments)
        assert code == 1 and out == ''
        assert f'there is a run in {tmp_path}/run: --resume continues it, or give --out' in err
        os.remove(tmp_path / 'run' / there)
    (tmp_path / 'other').mkdir()
    code, _, err = call('pretrain', tmp_path / 'other', '--out', 'run', '--resume')
    assert code == 1 and 'config.py is of other images: give these, or another --out' in err


def test_resumes_what_is_there(call, images, tmp_path, monkeypatch):
    """And says what it does not do."""
    code, out, err = call('pretrain', images, '--out', 'run', '--resume', '-q')
    assert (code, out) == (1, '')
    assert err == (
        f'mmdense: error: there is no run in {tmp_path}/run to continue: leave --resume out, or '
        'name it by --out\n'
    )
    trained = []
    monkeypatch.setattr(
        'mmdense.apis.pretraining.train_run', lambda run, *_, **__: trained.append(run) or []
    )
    told = ['--backbone', 'resnet18', '--epochs', '3', '--size', '64', '--seed', '1']
    told += ['--workers', '0', '--batch-size', '8', '--out', 'run']
    assert call('pretrain', images, *told)[0] == 0
    # killed before it saved anything
    code, out, err = call('pretrain', images, *told, '--resume', '-q')
    assert (code, out, err) == (0, '', 'The run has saved nothing yet: it starts anew.\n')
    (tmp_path / 'run' / 'backbone.pth').touch()
    assert call('pretrain', images, *told, '--resume', '-q') == (0, '', '')
    assert call('pretrain', images, '--out', 'run', '--resume', '-q') == (0, '', '')
    other = ['--method', OTHER, '--backbone', 'resnet34', '--epochs', '6', '--size', '96']
    other += ['--seed', '2', '--workers', '1', '--batch-size', '4', '--init', 'a.pth']
    code, out, err = call('pretrain', images, *other, '--out', 'run', '--resume')
    assert code == 0
    line = next(line for line in err.splitlines() if line.startswith('Ignored, for '))
    options = line.split(' says otherwise: ')[1].split(', ')
    assert sorted(options) == sorted(f'{a} {b}' for a, b in zip(other[::2], other[1::2]))
    assert f'to continue then: mmdense pretrain {images} --out run --resume\n' in err
    assert len(trained) == 5


def test_the_hint_is_a_command(call, images, tmp_path, monkeypatch, repo):
    """Wherever it is typed."""
    from mmdense.apis import pretraining

    monkeypatch.chdir(tmp_path)
    config = f'{tmp_path}/a b.py'
    monkeypatch.setattr(pretraining, 'find_spec', lambda name: None)
    program, tool, path = shlex.split(pretraining.format_tool_command(config))
    assert (program, path) == ('python', config) and os.path.samefile(tool, repo / 'tools/train.py')
    monkeypatch.chdir(repo)
    assert pretraining.format_tool_command('a.py') == 'python tools/train.py a.py'
    monkeypatch.setattr(pretraining, 'find_spec', lambda name: object())
    assert pretraining.format_tool_command('a.py') == 'mim train mmdense a.py'
    # as many processes, or it would be another run
    assert pretraining.format_tool_command('a.py', 4) == 'bash tools/dist_train.sh a.py 4'


@pytest.mark.parametrize(
    'backbone', ['convnext-atto', 'mobilenetv2', 'visiontransformer-deit-tiny']
)
def test_lines_for_another_backbone(backbone, tmp_path, require):
    """Of mmpretrain: the lines bring it along, and a stock detector and segmenter run with them."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import BaseDataElement

    from mmdense.apis.inspection.fit import read_config
    from mmdense.apis.planning import read_recipe
    from mmdense.apis.planning.survey import find_backbone
    from mmdense.apis.pretraining import describe_use
    from mmdense.checkpoints import save_backbone
    from mmdense.utils.log_level import log_level

    kind = find_backbone(backbone, read_recipe(EXAMPLE.method).model.backbone)
    kind.pop('_delete_')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(kind).state_dict()
    for value in trained.values():
        value += value.is_floating_point()  # as no new network's
    save_backbone(trained, str(tmp_path / 'a.pth'))
    cfg = Config(dict(model=dict(backbone=kind)))
    where, *lines = describe_use(str(tmp_path / 'a.pth'), cfg)
    assert where.endswith('/a.pth; in a config of mmdet, or of mmseg:') and len(lines) == 2
    if 'transformer' in backbone:  # of one stride
        assert all(
            'the maps have [192] channels' in line.split('# in_channels')[1] for line in lines
        )
        return
    for package, name, line in zip(
        ('mmdet', 'mmseg'), ('faster-rcnn_r50_fpn.py', 'fcn_r50-d8.py'), lines
    ):
        require(package)
        (tmp_path / 'config.py').write_text(
            f'_base_ = {read_config(f"{package}::_base_/models/{name}").filename!r}\n{line}\n'
        )
        cfg = Config.fromfile(str(tmp_path / 'config.py'))
        with DefaultScope.overwrite_default_scope(package):
            model = MODELS.build(cfg.model)
        with log_level('ERROR'):  # or MMEngine lists each tensor
            model.init_weights()
        state = model.backbone.state_dict()
        assert all(torch.equal(state[key], value) for key, value in trained.items())
        model.eval()
        sample = BaseDataElement(metainfo=dict(img_shape=(64, 96)))
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 64, 96), [sample], mode='tensor') is not None


def test_plan(call, images, tmp_path):
    code, out, err = call('plan', images, '--backbone', 'resnet18', '--epochs', '7')
    assert code == 0, err
    for row in (
        r'^setting +value +reason$',
        r'^images +16 +/\S+; the shorter side is 72 px',
        r'^batch +4 +four steps or more an epoch of 16 images$',
        r'^epochs +7 +set explicitly; 28 steps$',
        r'^queue +4 +no key older than a twentieth of the 28 steps$',
        r'^a step of 4 images: loading [\d.]+ ms an image \(workers: \d\), computing [\d.]+ ms an '
        r'image$',
        r'^here \(.*\): (under a minute|\d+ min)$',
        r'^on one GPU, too few images for 8: .* \(7 epochs in steps of 4 images; .* needed\)$',
        r'^memory at most: [\d.]+ GB of the (GPU|process), of [\d.]+ GB$',
        r'^disk at most: 0\.\d+ GB$',
        r'^  result: 16 images are few to begin from nothing; --init CHECKPOINT starts',
    ):
        assert re.search(row, out, re.M), (row, out)
    assert 'System environment' not in out + err
    assert os.listdir(tmp_path) == []
    # progress, and where it runs
    if not torch.cuda.is_available():
        assert re.search(r'^PyTorch finds no GPU: training runs on \d+ CPU cores\.$', err, re.M)
    stages = ['Reading the images', 'Timing some steps', '  loading batches', '  step 5 of 5']
    places = [err.index(stage) for stage in stages]
    assert places == sorted(places)


def test_plan_compares_with_one_gpu_too(call, monkeypatch, capsys):
    from mmdense.apis.planning import Estimate, Times
    from mmdense.apis.pretraining import Forecast
    from mmdense.cli.pretrain import _print_forecast

    cfg = Config(dict(train_dataloader=dict(num_workers=1, batch_size=32)))
    cfg.train_cfg = dict(max_epochs=10)
    machine = SimpleNamespace(name='', device='cpu', cores=2, memory=8e9)
    plan = SimpleNamespace(machine=machine, options=SimpleNamespace(gpus=1))
    times = Times(32, 0.1, 1.0, 1e12, 10**9)
    single = Estimate(0, 7200, 'a guess')
    _print_forecast(plan, Forecast(cfg, times, Estimate(9e4, 900, ''), 8, cfg, [], single, 10**9))
    out = capsys.readouterr().out
    assert 'on 8 GPUs: 15 min' in out and 'on one GPU: 2 h 00 min (a guess)' in out


def test_needs_are_said_before_training_and_are_enough(call, images, tmp_path):
    arguments = ['--backbone', 'resnet18', '--epochs', '4', '--workers', '0', '--size', '64']
    code, _, err = call('pretrain', images, '--out', 'run', *arguments)
    assert code == 0, err
    said = re.search(
        r'^time: (.*), a guess .*; memory: ([\d.]+) of [\d.]+ GB \w+ memory; '
        r'disk: ([\d.]+) GB at most, [\d.]+ GB are free$',
        err,
        re.M,
    )
    assert said and said.start() < err.index('Epoch(train)')
    used = sum(path.stat().st_size for path in Path('run').rglob('*') if path.is_file())
    assert 0.5 * float(said[3]) < used / 1e9 <= float(said[3]) + 0.005


@pytest.mark.parametrize('command', ['pretrain', 'plan'])
@pytest.mark.parametrize(
    'case, message',
    [
        ('none', 'none does not exist: give a folder, images, a zip, an LMDB or a COCO json'),
        ('empty', 'no image found in {here}/empty (with sub-folders'),
        ('three', '3 images in {here}/three: at least 8 are needed'),
        ('backbone', "there is no backbone 'resnut50'; the nearest: "),
        ('init', 'missing.pth'),
        ('gpus', '16 images in '),
        ('html.zip', 'is not a folder, nor a zip or an LMDB'),
        ('one.jpg', '1 image in {here}/one.jpg: at least 8 are needed'),
        ('empty.json', 'empty.json is empty: its list "images" has no entry'),
        ('prefix', '--prefix none is for a json or a list of images, {here}/three is neither'),
        ('labels', 'three is no COCO json with boxes, nor a folder with JPEGImages and Annot'),
        ('size', '--size 8: the last map is 1/32 of the views, at least 32'),
        ('method', f"method must be one of {', '.join(METHODS)}, got 'moco'"),
        ('module', '--custom-imports no_such: ModuleNotFoundError: No module named'),
    ],
)
def test_refusals(call, images, tmp_path, command, case, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'three').mkdir()
    (tmp_path / 'html.zip').write_text('<html>')
    (tmp_path / 'empty.json').write_text('{"images": []}')
    shutil.copy(os.path.join(images, '00.jpg'), str(tmp_path / 'one.jpg'))
    for i in range(3):
        name = f'{i:02}.jpg'
        shutil.copy(os.path.join(images, name), str(tmp_path / 'three' / name))
    more = dict(
        backbone=[images, '--backbone', 'resnut50'],
        init=[images, '--init', 'missing.pth'],
        gpus=[images, '--gpus', '3'],
        prefix=['three', '--prefix', 'none'],
        labels=[images, '--labels', 'three'],
        size=[images, '--size', '8'],
        method=[images, '--method', 'moco'],
        module=[images, '--custom-imports', 'no_such'],
    )
    code, out, err = call(command, *more.get(case, [case]))
    assert (code, out) == (1, ''), err
    *progress, error = err.splitlines()
    assert error.startswith('mmdense: error: ')
    assert progress in ([], ['Reading the images, and trying the backbone…'][: command == 'plan'])
    assert message.format(here=tmp_path) in err
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('bands', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_bands(call, run, tmp_path, bands):
    """Satellite images of 12 bits, from the folder to the backbone in mmpretrain."""
    tifffile = pytest.importorskip('tifffile')
    values = np.random.RandomState(0).randint(0, 4096, (16, 9, 11, bands)).astype(np.float32)
    for i, small in enumerate(values):
        image = cv2.resize(small, (80, 72), interpolation=cv2.INTER_CUBIC).clip(0, 4095)
        tifffile.imwrite(
            tmp_path / f'{i}.tif',
            image.astype(np.uint16),
            photometric='minisblack',
            **(dict(planarconfig='contig') if bands > 1 else {}),
        )
    told = ['--in-channels', bands, '--backbone', 'resnet18', '--epochs', 1, '--batch-size', 4]
    told += ['--workers', 0, '--method', tiny_form(PATCHES).method, '--out', 'run']
    code, out, err = call('pretrain', '.', *told)
    assert code == 0, err
    finished = out + err
    assert re.search(r'^value range +0 to 4,096 +16-bit images use', out, re.M), out
    assert re.search(rf'^channels +{bands} +set explicitly; mean and std', out, re.M), out
    assert '16-bit images use' not in err  # it is set
    cfg = Config.fromfile('run/config.py')
    load = cfg.train_dataloader.dataset.pipeline[0]
    assert (load.channels, load.value_range) == (bands, (0, 4096))
    assert len(cfg.model.data_preprocessor.mean) == bands
    assert call('pretrain', '.', *told, '--resume')[0] == 0
    code, out, err = call('pretrain', '.', *told[-4:], '--resume')
    assert code == 0 and 'mmdense report' in err and 'mmdense show' not in out + err

    code, out, _ = call('check', 'run/backbone.pth', '--images', '.')
    assert code == 0 and re.search('^ +random .*[0-9]', out, re.M), out
    net = MODELS.build(
        dict(
            type='mmpretrain.ResNet',
            depth=18,
            in_channels=bands,
            init_cfg=dict(type='mmdense.SelfSupPretrained', checkpoint='run/backbone.pth'),
        )
    )
    net.init_weights()
    report = Path(write_report('run')).read_text()
    assert 'not shown' not in report
    code, _, err = call('show', 'run/backbone.pth', '.')
    assert code == 1 and f'takes images of {bands} channels: pictures are drawn' in err
    assert 'mmdense show' not in finished and 'mmdense report' in finished
    code, out, err = call('export', 'run/backbone.pth', '--to', 'onnx', '--out', 'bands.onnx')
    assert code == 0 and f'N×{bands}×H×W, bands as in the files' in out, err
    # and on from a file of three channels
    torch.save(ResNet(18).state_dict(), 'rgb.pth')
    code, out, err = call('plan', '.', *told[:-2], '--init', 'rgb.pth')
    assert code == 0 and f'is adapted ({"sum" if bands == 1 else "repeat"})' in out, err


def test_channels_that_differ(call, images, capsys):
    code, _, err = call('pretrain', images, '--in-channels', 4)
    assert code == 1 and 'it has 3 bands, and 4 channels are read' in err
    # by a config
    told = [images, '--backbone', 'resnet18', '--epochs', 1, '--workers', 0, '--out', 'run']
    told += ['--batch-size', 4]
    code, _, err = call('pretrain', *told)
    assert code == 0, err
    for option, message in (
        ('model.backbone.in_channels=4', 'the images have 3 channels, the backbone takes 4: set'),
        ('train_dataloader.dataset.pipeline.0.channels=1', 'the images have 1 channels, the back'),
        ('model.data_preprocessor.mean=[1,2]', 'as many of each'),
    ):
        args = train_parser().parse_args(['run/config.py', '--cfg-options', option])
        with pytest.raises(SystemExit):
            prepare_training(args)
        err = capsys.readouterr().err.splitlines()
        assert message in err[-1] and 'Traceback' not in err


def test_a_narrow_range_is_said_in_training(call, tmp_path):
    """By a config that was written by hand, and not by the planner."""
    for i in range(16):
        small = np.random.RandomState(i).randint(0, 255, (9, 11)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'{i}.png'), cv2.resize(small, (80, 72)).astype(np.uint16) * 16)
    told = ['.', '--backbone', 'resnet18', '--epochs', 1, '--workers', 0, '--out', 'run']
    assert call('pretrain', *told, '--batch-size', 4)[0] == 0
    config = Path('run/config.py').read_text()
    assert config.count('value_range') == 1
    Path('hand.py').write_text(re.sub(r'.*value_range.*\n', '', config).replace("/run'", "/hand'"))
    train(prepare_training(train_parser().parse_args(['hand.py'])))
    (log,) = Path('hand').glob('*/*.log')
    assert re.search(
        r'WARNING - 16-bit images use \d+ to 4,\d+ .* set value_range=\(0, 4096\) of LoadImage',
        log.read_text(),
    )


def test_out_that_cannot_be_written(call, images, tmp_path):
    (tmp_path / 'file').write_text('')
    code, _, err = call('pretrain', images, '--out', 'file/run', '--backbone', 'resnet18')
    assert code == 1
    assert err == f'mmdense: error: cannot write file/run/config.py: {tmp_path}/file is no folder\n'


@pytest.mark.parametrize('flag', ['--epochs', '--batch-size', '--gpus', '--size', '--workers'])
@pytest.mark.parametrize('value', ['-1', 'many'])
def test_wrong_usage(call, images, flag, value):
    code, _, err = call('pretrain', images, f'{flag}={value}')
    assert code == 2 and flag in err and value in err


@pytest.mark.parametrize(
    'words, message',
    [
        ([''], 'argument images: must not be empty'),  # an unset variable
        (['photos', '--init', ''], 'argument --init: must not be empty'),
        (['photos', '--seed', str(2**32)], 'argument --seed: must be below 2**32'),
        ([os.fsdecode(b'ph\xff')], 'is not UTF-8: rename it'),
    ],
)
def test_arguments_that_cannot_be_meant(call, words, message):
    code, out, err = call('plan', *words)
    assert (code, out) == (2, '') and message in err


def test_labels_score_the_features(call, images, tmp_path):
    """Boxes of every image; the figures are in the log, and in a report."""
    files = sorted(os.listdir(images))
    boxes = [
        dict(image_id=i, category_id=1 + i % 2, bbox=[5, 5, 30, 30], iscrowd=0)
        for i in range(len(files))
    ]
    content = dict(
        images=[dict(id=i, file_name=name) for i, name in enumerate(files)],
        annotations=boxes,
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    told = [images, '--labels', 'labels.json', '--prefix', images]
    told += ['--backbone', 'resnet18', '--epochs', '2', '--size', '64', '--workers', '0']
    code, out, err = call('pretrain', *told, '--out', 'run')
    assert code == 0, err
    assert re.search(r'^evaluation +every epoch +nearest neighbours and a linear', out, re.M)
    for steps in (0, 4, 8):
        assert re.search(rf'Features after {steps} iterations: knn_accuracy [\d.]+.* linear', err)
    assert re.search(r'the most frequent class everywhere scores accuracy \d', err)
    monitored = Path(write_report(str(tmp_path / 'run'))).read_text()
    assert 'knn_accuracy' in monitored and 'most frequent class everywhere' in monitored
    code, _, err = call('pretrain', *told, '--out', 'run', '--resume')
    assert code == 0 and 'Ignored' not in err
    code, _, err = call('pretrain', images, '--labels', 'three', '--out', 'run', '--resume')
    assert code == 1 and 'three' in err


def test_a_run_of_each_folder(call, images, tmp_path):
    """data.v1 and data.v2 are two; a run of others is not gone on with by accident."""
    from mmdense.apis.planning import Options
    from mmdense.apis.pretraining import Request

    for name in ('data.v1', 'data.v2'):
        (tmp_path / name).mkdir()
    (tmp_path / 'data.zip').touch()
    outs = [Request(str(tmp_path / n), Options(method='a')).folder for n in os.listdir()]
    assert len(set(outs)) == 3 and str(tmp_path / 'work_dirs' / 'a_data') in outs
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'backbone.pth').touch()
    (tmp_path / 'run' / 'config.py').write_text(
        "train_dataloader = dict(dataset=dict(data_root='b'))"
    )
    code, _, err = call('pretrain', images, '--out', 'run')
    assert code == 1
    assert (
        err
        == f'mmdense: error: there is a run of other images in {tmp_path}/run: give another --out\n'
    )


@pytest.mark.parametrize(
    'text, message',
    [('model = dict(\n', 'SyntaxError'), ('a = 1\n', 'train_dataloader')],
)
def test_a_config_spoilt_by_hand(call, images, tmp_path, text, message):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.py').write_text(text)
    code, _, err = call('pretrain', images, '--out', 'run', '--resume')
    assert code == 1 and len(err.splitlines()) == 1
    assert err.startswith('mmdense: error: ') and message in err


@pytest.mark.slow
def test_processes_are_told_to_end(images, tmp_path):
    """SIGTERM saves, exit code 0; nothing goes on without the command."""
    command = [sys.executable, '-m', 'mmdense', 'pretrain', images, '--out', tmp_path / 'run']
    command += ['--backbone', 'resnet18', '--epochs', '500', '--gpus', '2', '--workers', '0']
    with open(tmp_path / 'log.txt', 'w+') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        for _ in range(1200):
            if 'Epoch(train)' in (tmp_path / 'log.txt').read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    text = (tmp_path / 'log.txt').read_text()
    assert 'SIGTERM: saved' in text and 'The backbone is' not in text, text
    assert list((tmp_path / 'run').glob('*.pth'))
    assert len(started) > 2 and not psutil.wait_procs(started, timeout=20)[1]


def test_help_fits_a_screen(call):
    for command in ('pretrain', 'plan'):
        code, out, _ = call(command, '--help')
        assert code == 0 and len(out.splitlines()) <= 40


def test_a_finished_run_says_so_and_trains_longer(call, images, tmp_path):
    """With the learning rate of the longer run; and the end of a run names the next steps."""
    told = [images, '--backbone', 'resnet18', '--size', '64', '--workers', '0', '--out', 'run']
    code, out, err = call('pretrain', *told, '--epochs', '2')
    assert code == 0, err
    steps = err[err.index('Next:') :]
    out_dir = f'{tmp_path}/run'
    for command in (
        f'mmdense show {out_dir}/backbone.pth {images} ',
        f'mmdense report {out_dir} ',
        f'mmdense check {out_dir}/backbone.pth --images {images} ',
        f'mmdense export {out_dir}/backbone.pth --to timm ',
    ):
        assert command in steps, steps
    lines = steps[steps.index('In plain PyTorch:') :].splitlines()[1:4]
    scope = {}
    exec('\n'.join(line.strip() for line in lines), scope)
    weights = torch.load('run/backbone.pth', weights_only=True)['state_dict']
    assert torch.equal(
        scope['model'].state_dict()['layer4.1.conv2.weight'], weights['layer4.1.conv2.weight']
    )
    assert set(scope['model'].state_dict()) - set(weights) == {'fc.weight', 'fc.bias'}

    before = os.path.getmtime('run/backbone.pth')
    code, again, err = call('pretrain', *told, '--resume')
    assert code == 0 and again == out.split('\n', out.count('\n') - 3)[-1]
    assert 'The run is finished: all 2 epochs are trained. --epochs MORE --resume' in err
    assert 'Ctrl-C saves' not in err and os.path.getmtime('run/backbone.pth') == before

    code, _, err = call('pretrain', *told, '--epochs', '4', '--resume')
    assert code == 0 and '4 epochs instead of 2; 2 are done.' in err and 'Ignored' not in err, err
    rows = [
        json.loads(line)
        for path in sorted(Path('run').glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    lr = {row['epoch']: row['lr'] for row in rows if 'lr' in row}
    base = Config.fromfile('run/config.py').optim_wrapper.optimizer.lr
    assert Config.fromfile('run/config.py').train_cfg.max_epochs == 4
    text = Path('run/config.py').read_text()
    assert '# epochs: set explicitly, to train longer\n    max_epochs=4,' in text
    # epoch 3 of 4 is at the middle of the cosine
    assert lr[3] == pytest.approx(base / 2) and lr[4] < lr[3]


@pytest.mark.parametrize('backbone', ['resnet34', 'mobilenetv2', 'convnext-atto'])
def test_lines_of_plain_pytorch(backbone, tmp_path):
    """They run, and fill all of the backbone."""
    from mmengine.registry import MODELS, DefaultScope

    from mmdense.apis.planning import Options, read_recipe
    from mmdense.apis.planning.survey import find_backbone
    from mmdense.apis.pretraining import Request, describe_pytorch
    from mmdense.checkpoints import save_backbone

    default = read_recipe(EXAMPLE.method).model.backbone.to_dict()
    found = find_backbone(backbone, default)
    kind = found if found.pop('_delete_', False) else {**default, **found}
    kind['_scope_'] = 'mmdense'  # as MMEngine adds it to what is inherited from a package
    Config(dict(model=dict(backbone=kind))).dump(str(tmp_path / 'config.py'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(kind).state_dict()
    trained = {name: value + value.is_floating_point() for name, value in trained.items()}
    save_backbone(trained, str(tmp_path / 'backbone.pth'))
    lines, scope = describe_pytorch(Request('photos', Options(), out=str(tmp_path))), {}
    assert len(lines) == 3 and ('torchvision' in lines[0]) == (backbone == 'resnet34')
    exec('\n'.join(lines), scope)
    state = scope['model'].state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.items())


def test_epochs_in_a_config_that_was_changed_by_hand(tmp_path):
    from mmdense.apis.pretraining import _set_epochs
    from mmdense.utils.errors import InputError

    path = tmp_path / 'config.py'
    path.write_text('train_cfg = dict(\n    max_epochs = 3, val_interval=1)\n')
    _set_epochs(str(path), 7)
    assert Config.fromfile(str(path)).train_cfg == dict(max_epochs=7, val_interval=1)
    path.write_text('n = 3\ntrain_cfg = dict(max_epochs=n)\na = dict(max_epochs=5)\n')
    with pytest.raises(InputError, match='--epochs 9: .*set train_cfg.max_epochs there by hand'):
        _set_epochs(str(path), 9)
    assert 'max_epochs=5' in path.read_text()
