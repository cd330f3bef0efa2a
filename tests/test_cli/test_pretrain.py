# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense pretrain`` and ``mmdense plan``, as they are typed."""

import os
import pty
import re
import shutil
import sys

import pytest
import torch
from mmengine.config import Config

from mmdense.cli import main


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
    assert 'setting        value' in shown and 'images are of 72 px' in shown
    assert re.search(r'epoch 1/3 .* [\d.]+ images/s loss [\d.]+ 0:\d\d:\d\d', shown)
    assert re.search(rf'SIGINT: saved {out}/iter_\d+\.pth and ended; --resume goes on', shown)
    assert 'System environment' not in shown and 'Epoch(train)' not in shown
    assert 'Traceback' not in shown and not (out / 'backbone.pth').exists()
    text = (out / 'config.py').read_text()

    done = run(*command, '--resume', cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f'Going on with {out}/config.py as it is.' in done.stdout
    assert 'Epoch(train) [3][4/4]' in done.stdout and 'images/s' not in done.stdout
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
    assert done.stdout.splitlines()[-3].startswith(f'The backbone is {tmp_path}/run/backbone.pth')
    assert (tmp_path / 'run' / 'backbone.pth').exists()


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
        assert f'there is a run in {tmp_path}/run: --resume goes on with it, or give --out' in err
        os.remove(tmp_path / 'run' / there)
    (tmp_path / 'other').mkdir()
    code, _, err = call('pretrain', tmp_path / 'other', '--out', 'run', '--resume')
    assert code == 1 and 'config.py is of other images: --resume without changing IMAGES' in err


def test_plan(call, images, tmp_path):
    code, out, err = call('plan', images, '--backbone', 'resnet18', '--epochs', '7')
    assert code == 0, err
    for row in (
        r'^setting +value +reason$',
        r'^images +16 +/\S+; the shorter side is 72 px',
        r'^batch +4 +four steps or more an epoch of 16 images$',
        r'^epochs +7 +as told; 28 steps$',
        r'^queue +16 +at most the number of images',
        r'^a step of 4 images: loading [\d.]+ ms an image \(workers: \d\), computing [\d.]+ ms$',
        r'^here \(.*\): \d+ (s|min)$',
        r'^on 8 GPUs: too few images$',
        r'^memory at most: [\d.]+ GB of the (GPU|process), of [\d.]+ GB$',
        r'^  result: 16 images are few to begin from nothing; --init CHECKPOINT goes on',
    ):
        assert re.search(row, out, re.M), (row, out)
    assert 'System environment' not in out + err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('command', ['pretrain', 'plan'])
@pytest.mark.parametrize(
    'case, message',
    [
        ('none', 'none does not exist: give a folder, a zip, an LMDB or a COCO json'),
        ('empty', 'no image found in {here}/empty (with sub-folders'),
        ('three', '3 images in {here}/three: at least 8 are needed'),
        ('backbone', "there is no backbone 'resnut50'; the nearest: "),
        ('init', 'missing.pth'),
        ('gpus', '16 images in '),
        ('html.zip', 'is not a folder, nor a zip or an LMDB'),
    ],
)
def test_refusals(call, images, tmp_path, command, case, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'three').mkdir()
    (tmp_path / 'html.zip').write_text('<html>')
    for i in range(3):
        name = f'{i:02}.jpg'
        shutil.copy(os.path.join(images, name), str(tmp_path / 'three' / name))
    more = dict(
        backbone=[images, '--backbone', 'resnut50'],
        init=[images, '--init', 'missing.pth'],
        gpus=[images, '--gpus', '3'],
    )
    code, out, err = call(command, *more.get(case, [case]))
    assert (code, out) == (1, ''), err
    assert err.startswith('mmdense: error: ') and len(err.splitlines()) == 1
    assert message.format(here=tmp_path) in err
    assert not (tmp_path / 'work_dirs').exists()


def test_out_that_cannot_be_written(call, images, tmp_path):
    (tmp_path / 'file').write_text('')
    code, _, err = call('pretrain', images, '--out', 'file/run', '--backbone', 'resnet18')
    assert code == 1
    assert err == f'mmdense: error: cannot write {tmp_path}/file/run/config.py: Not a directory\n'


@pytest.mark.parametrize('flag', ['--epochs', '--batch-size', '--gpus', '--size', '--workers'])
@pytest.mark.parametrize('value', ['-1', 'many'])
def test_wrong_usage(call, images, flag, value):
    code, _, err = call('pretrain', images, f'{flag}={value}')
    assert code == 2 and flag in err and value in err


def test_help_fits_a_screen(call):
    for command in ('pretrain', 'plan'):
        code, out, _ = call(command, '--help')
        assert code == 0 and len(out.splitlines()) <= 40
