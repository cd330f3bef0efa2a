# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""tools/transfer.py, on real images, at a size that a CPU does in seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from tiny_algorithms import algorithms_of, tiny_form

from mmdense.apis import transfer
from mmdense.utils.errors import MMDenseError

METHOD = tiny_form().method
SMALL = [
    'model.backbone.depth=18',
    *(f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val', 'test')),
    *(f'{loader}_dataloader.persistent_workers=False' for loader in ('train', 'val', 'test')),
    *(f'{loader}_dataloader.dataset.indices=2' for loader in ('val', 'test')),
    *('train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=2'),
    'default_hooks.logger.interval=1',
]
OPTIONS = dict(
    fcn_r50_camvid=[
        *('model.decode_head.in_channels=512', 'model.decode_head.channels=32'),
        'model.data_preprocessor.size=(96,128)',
        'train_dataloader.dataset.pipeline.2.scale=(160,120)',
        'train_dataloader.dataset.pipeline.3.crop_size=(96,128)',
    ],
    **{
        'faster-rcnn_r50_fpn_bccd': [
            *('model.neck.in_channels=64,128,256,512', 'model.neck.out_channels=32'),
            *('model.rpn_head.in_channels=32', 'model.rpn_head.feat_channels=32'),
            'model.roi_head.bbox_roi_extractor.out_channels=32',
            *(f'model.roi_head.bbox_head.{k}=32' for k in ('in_channels', 'conv_out_channels')),
            'model.roi_head.bbox_head.fc_out_channels=64',
            *(f'model.train_cfg.rpn_proposal.{k}=50' for k in ('nms_pre', 'max_per_img')),
            'model.train_cfg.rcnn.sampler.num=32',
            'train_dataloader.dataset.pipeline.2.scales=[(200,160)]',
            *(
                f'{loader}_dataloader.dataset.pipeline.1.scale=(200,160)'
                for loader in ('val', 'test')
            ),
        ]
    },
)


@pytest.fixture
def arguments(data_root, tmp_path):
    def make(task, *flags, iters=3, data=data_root):
        return [
            *(*flags, '--to', task, '--work-dir', str(tmp_path / 'runs'), '--data-root', str(data)),
            *('--cfg-options', *SMALL, *OPTIONS.get(task, ()), f'train_cfg.max_iters={iters}'),
        ]

    return make


def read(folder):
    return json.loads((folder / 'result.json').read_text())


@pytest.mark.parametrize('number, says', [(9, 'SIGKILL: is the memory full?'), (15, 'SIGTERM ')])
def test_a_task_that_a_signal_ended(number, says, tmp_path, monkeypatch):
    """The last line of its log is not the reason."""
    popen = subprocess.Popen
    code = f'import os; print("a warning", flush=True); os.kill(os.getpid(), {number})'
    monkeypatch.setattr(
        transfer.subprocess,
        'Popen',
        lambda _, **kwargs: popen([sys.executable, '-c', code], **kwargs),
    )
    run = SimpleNamespace(package='mmengine', path=lambda *names: str(tmp_path.joinpath(*names)))
    with pytest.raises(MMDenseError, match=f'^ended by {re.escape(says)}') as error:
        transfer._call(run, 'train', 1)
    assert 'a warning' not in str(error.value) and 'train.log' in str(error.value)


def test_kill_resume_and_one_table(arguments, tmp_path, pretrained, repo, run, run_here, require):
    require('mmseg')
    runs = tmp_path / 'runs'
    flags = arguments('fcn_r50_camvid', pretrained, '--baseline', 'random', iters=12)
    command = [sys.executable, 'tools/transfer.py', *map(str, flags)]

    # killed in the middle: mmseg's tool ends with it
    env = dict(os.environ, PYTHONPATH=str(repo))
    process = subprocess.Popen(command, cwd=repo, env=env, text=True, stdout=subprocess.PIPE)
    begun = runs / 'random' / 'fcn_r50_camvid'
    for _ in range(1200):
        if (begun / 'last_checkpoint').exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert (begun / 'last_checkpoint').exists() and not (begun / 'result.json').exists()
    assert not (runs / METHOD).exists()

    done = run(*command)
    assert done.returncode == 0, done.stdout
    assert 'random → fcn_r50_camvid: goes on' in done.stdout
    assert f'{METHOD} → fcn_r50_camvid: starts' in done.stdout
    assert 'resumed epoch' in (begun / 'train.log').read_text()
    log = (runs / METHOD / 'fcn_r50_camvid' / 'train.log').read_text()
    assert f'all 120 tensors of ResNet filled from {pretrained}' in log and 'loss: ' in log
    table = (runs / 'table.md').read_text()
    assert table in done.stdout
    header, _, *rows = [line.strip('|').split('|') for line in table.splitlines()]
    assert [cell.strip() for cell in header] == ['method', 'fcn_r50_camvid mIoU']
    assert (runs / 'table.tex').read_text().count(r'\\') == 3
    assert (runs / 'table.csv').read_text().count('\n') == 3
    for (name, miou), expected in zip(rows, ('random', METHOD)):
        result = read(runs / expected / 'fcn_r50_camvid')
        assert name.strip() == result['method'] == expected
        assert miou.strip() == f'{result["metrics"]["mIoU"]:.1f}'
        assert result['trained'].endswith('iter_12.pth')
    assert read(begun)['checkpoint'] is None
    assert read(runs / METHOD / 'fcn_r50_camvid')['checkpoint'] == str(pretrained)

    # the same again: nothing is run, the table is the same
    before = {path: path.stat().st_mtime_ns for path in runs.rglob('*') if path.stem != 'table'}
    code, printed = run_here('transfer.py', *flags)
    assert code == 0 and printed.out.count('finished before') == 2 and table in printed.out
    assert {p: p.stat().st_mtime_ns for p in runs.rglob('*') if p.stem != 'table'} == before

    # other settings, another checkpoint
    code, printed = run_here('transfer.py', *arguments('fcn_r50_camvid', pretrained, iters=13))
    assert code == 1 and 'train_cfg.max_iters was 12 and would be 13' in printed.err
    other = tmp_path / 'other.pth'
    export_other(pretrained, other)
    code, printed = run_here(
        'transfer.py', *arguments('fcn_r50_camvid', f'{METHOD}={other}', iters=12)
    )
    assert code == 1 and f'is of another checkpoint than {other}' in printed.err
    assert 'delete that folder, or name another --work-dir' in printed.err


def test_seeds_and_what_they_would_cost(arguments, tmp_path, pretrained, run_here, require):
    """A dry run trains a few steps elsewhere, and leaves nothing; Slurm gets a job for each."""
    require('mmseg')
    flags = arguments('fcn_r50_camvid', pretrained, '--baseline', 'random', '--seeds', '0', '7')
    code, printed = run_here('transfer.py', *flags, '--dry-run')
    assert code == 0, printed.err
    assert not (tmp_path / 'runs').exists()
    out = printed.out
    for number, name in enumerate([f'{m} → fcn_r50_camvid, seed {k}' for m, k in EACH], 1):
        assert f'[{number}/4] {name}: would run\n' in out
    folder = tmp_path / 'runs' / METHOD / 'fcn_r50_camvid' / 'seed7'
    assert f'tools/train.py {folder}/config.py --work-dir {folder}\n' in out
    assert f'tools/test.py {folder}/config.py {folder}/TRAINED.pth' in out
    costs = re.findall(r'training: 3 steps of ([\d.]+) s: 0 h 00 min; ([\d.]+) GiB of main', out)
    assert len(costs) == 4 and len(set(costs)) == 1  # tried once
    assert float(costs[0][0]) > 0 and 0.1 < float(costs[0][1]) < 20
    assert 'training in all: 0.0 h' in out


EACH = [('random', 0), ('random', 7), (METHOD, 0), (METHOD, 7)]


def test_slurm(arguments, tmp_path, pretrained, run_here, require, monkeypatch):
    """Each job is the tool with one run; the arguments reach it."""
    require('mmseg')
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nfor a; do echo "$a"; done\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    runs = tmp_path / 'runs'
    finished = runs / 'random' / 'fcn_r50_camvid' / 'seed0' / 'result.json'
    finished.parent.mkdir(parents=True)
    finished.write_text('{}')
    flags = arguments('fcn_r50_camvid', pretrained, '--baseline', 'random', '--seeds', '0', '7')
    code, printed = run_here('transfer.py', *flags, '--gpus', '4', '--slurm')
    assert code == 0 and printed.out == f'sbatch {runs}/transfer.sbatch\n', printed
    script = (runs / 'transfer.sbatch').read_text()
    assert '#SBATCH --array=1-3\n' in script and '#SBATCH --gpus-per-node=4\n' in script
    for number, (method, seed) in enumerate(EACH[1:], 1):
        env = dict(os.environ, SLURM_ARRAY_TASK_ID=str(number))
        got = subprocess.run(['bash', runs / 'transfer.sbatch'], env=env, stdout=subprocess.PIPE)
        tool, *given = got.stdout.decode().splitlines()
        assert tool.endswith('tools/transfer.py')
        source = ['--baseline', 'random'] if method == 'random' else [f'{METHOD}={pretrained}']
        assert given[: len(source)] == source
        assert given[given.index('--seeds') + 1] == str(seed)
        assert given[given.index('--gpus') + 1] == '4'
        assert 'model.data_preprocessor.size=(96, 128)' in given


def test_seeds_are_one_row(arguments, tmp_path, pretrained, run_here, require):
    require('mmseg')
    flags = arguments('fcn_r50_camvid', pretrained, '--seeds', '0', '7', iters=2)
    code, printed = run_here('transfer.py', *flags)
    assert code == 0, printed.err
    runs = [tmp_path / 'runs' / METHOD / 'fcn_r50_camvid' / f'seed{k}' for k in (0, 7)]
    values = [read(run)['metrics']['mIoU'] for run in runs]
    assert [read(run)['seed'] for run in runs] == [0, 7]
    assert 'seed: 7\n' in (runs[1] / 'train.log').read_text()
    mean, half = sum(values) / 2, abs(values[0] - values[1]) / 2
    assert f'| {mean:.1f} ± {half:.1f}' in (tmp_path / 'runs' / 'table.md').read_text()


def export_other(checkpoint, path):
    """The same backbone, a little different."""
    from mmdense.checkpoints import read_checkpoint, recognise
    from mmdense.checkpoints.export import save_backbone

    tensors = recognise(read_checkpoint(str(checkpoint))).backbone
    save_backbone({k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}, str(path))


def test_a_detector_and_a_failure(arguments, tmp_path, pretrained, run, require):
    """One run that fails does not lose the other."""
    require('mmdet')
    require('mmcv._ext')
    flags = arguments('faster-rcnn_r50_fpn_bccd', f'first={pretrained}', f'second={pretrained}')
    blocked = tmp_path / 'runs' / 'first' / 'faster-rcnn_r50_fpn_bccd'
    (blocked / 'iter_2.pth').mkdir(parents=True)  # no checkpoint can be written there
    done = run(sys.executable, 'tools/transfer.py', *flags)
    assert done.returncode == 1, done.stdout
    assert 'first → faster-rcnn_r50_fpn_bccd: failed: ' in done.stdout
    assert f'{blocked}/train.log' in done.stdout
    assert 'error: failed: first → faster-rcnn_r50_fpn_bccd\n' in done.stdout
    metrics = read(tmp_path / 'runs' / 'second' / 'faster-rcnn_r50_fpn_bccd')['metrics']
    assert 0 <= metrics['pascal_voc/AP75'] <= metrics['pascal_voc/AP50'] <= 1
    header, _, row = (tmp_path / 'runs' / 'table.md').read_text().splitlines()
    names = [cell.strip() for cell in header.strip('|').split('|')]
    assert names == ['method', 'faster-rcnn_r50_fpn_bccd AP', 'AP50', 'AP75']
    assert row.startswith('| second ')


def test_mistakes_are_one_line_before_anything_starts(
    arguments, tmp_path, data_root, run_here, require
):
    import torch
    from mmpretrain.models import ResNet

    from mmdense.checkpoints.export import save_backbone

    require('mmseg')
    good, deep, bad = tmp_path / 'r18.pth', tmp_path / 'r50.pth', tmp_path / 'bad.pth'
    save_backbone(ResNet(18).state_dict(), str(good))
    save_backbone(ResNet(50).state_dict(), str(deep), algorithm=algorithms_of('teacher')[0])
    torch.save(dict(state_dict=ResNet(18).state_dict()), bad)
    bad.write_bytes(bad.read_bytes()[:1000])
    task = 'fcn_r50_camvid'
    for flags, expected in [
        (arguments('fcn_r50_camvit', good), "there is no task 'fcn_r50_camvit'; there are: "),
        (arguments('fcn_r50_camvit', good), 'mask-rcnn_r50_fpn_1x_coco'),
        (arguments(task, good, bad), f'{bad} is damaged or cut short'),
        (arguments(task, tmp_path / 'none.pth'), 'none.pth does not exist'),
        (arguments(task, good, deep), 'the model is a ResNet-18: set depth'),
        (arguments(task, good, good), 'would both be called r18: name them, as r18-2='),
        (arguments(task, f'random={good}'), "'random' is no name for a method"),
        (arguments(task), 'give a checkpoint, or --baseline random'),
        (arguments(task, good, data=tmp_path), f'reads {tmp_path}/camvid, which is not there'),
        (arguments(task, good, '--gpus', '999'), '--gpus 999, but '),
    ]:
        code, printed = run_here('transfer.py', *flags)
        assert code == 1 and expected in printed.err, printed.err
        assert printed.err.count('\n') == 1 and printed.err.startswith('mmdense: error: ')
    assert not (tmp_path / 'runs').exists()


def test_random_is_resnets_own_initialisation(data_root):
    """Not PyTorch's, which is left where init_cfg is empty; and nothing is read."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    from mmdense.apis.transfer import Method, plan

    pytest.importorskip('mmseg')
    (run,) = plan([Method('random')], ['fcn_r50_camvid'], 'nowhere', data_root=str(data_root))
    assert 'SelfSupPretrained' not in run.cfg.pretty_text
    with DefaultScope.overwrite_default_scope('mmseg'):
        backbone = MODELS.build(run.cfg.model.backbone)
    backbone.init_weights()
    weight = backbone.layer2[0].conv2.weight
    fan_out = weight.shape[0] * 9
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert torch.equal(backbone.layer4[2].bn3.weight, torch.ones(2048))


TOOL = """
import os, pathlib, sys
assert sys.argv[-2:] == ['--launcher', 'pytorch']
pathlib.Path(os.environ['RANK'] + '.txt').write_text(' '.join(sys.argv[1:]))
"""


def test_several_gpus_and_the_lock(tmp_path, monkeypatch):
    """Through torchrun, one process a GPU; and two programs never train in one folder."""
    from mmdense.apis.transfer import Method, Run, _call
    from mmdense.utils.errors import MMDenseError
    from mmdense.utils.files import locked

    tools = tmp_path / 'package' / '.mim' / 'tools'
    tools.mkdir(parents=True)
    (tools / 'train.py').write_text(TOOL)
    (tools.parents[1] / '__init__.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = Run(Method('random'), 'task', 'package', str(tmp_path), None)
    with locked(run.path('lock')):
        _call(run, 'train', 2, '--resume')
        in_use = pytest.raises(MMDenseError, match='is in use by another process')
        with in_use, locked(run.path('lock')):
            pass
    for rank in range(2):
        expected = f'{tmp_path}/config.py --resume --launcher pytorch'
        assert (tmp_path / f'{rank}.txt').read_text() == expected
