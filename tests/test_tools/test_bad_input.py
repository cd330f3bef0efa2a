# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Bad input ends tools/train.py with one line, and earlier checkpoints stay."""

import os
import runpy
import sys

import pytest
import torch
from tiny_algorithms import algorithms_of, tiny_form

EXAMPLE = tiny_form()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ('it_ran',)


def write_html(path):
    path.write_text('<!DOCTYPE html><html>404 Not Found</html>')


def write_truncated(path):
    torch.save(dict(state_dict=dict(a=torch.ones(1000))), path)
    path.write_bytes(path.read_bytes()[:2000])


def write_bomb(path):
    torch.save(dict(state_dict={}, meta=Bomb()), path)


CASES = dict(
    unknown_key=(['model.queue_length=64'], 'queue_length'),
    unknown_type=(['model.type=DensCL'], 'DensCL'),
    wrong_type=(['model.queue_len=many'], "queue_len must be a whole number of at least 1, got 'm"),
    negative_size=(
        ['model.queue_len=-64'],
        'queue_len must be a whole number of at least 1, got -',
    ),
    negative_channels=(['model.neck.hid_channels=-1'], 'hid_channels must be a whole number'),
    one_view=(
        ['train_dataloader.dataset.pipeline.1.num_views=1'],
        f'{EXAMPLE.algorithm} needs 2 views of every image, got 1; check num_views of MultiView',
    ),
    short_queue=(
        ['model.queue_len=3'],
        'queue_len=3 is smaller than the 4 keys of one batch over all processes',
    ),
    no_folder=(['train_dataloader.dataset.data_root=/no/such/folder'], '/no/such/folder'),
    few_images=(['train_dataloader.batch_size=17'], '16 images are fewer than one batch of 17'),
    wrong_size=(['train_dataloader.dataset.pipeline.1.transforms.0.0.scale=-5'], 'scale > 0'),
    unknown_loop_key=(['train_cfg.max_epoch=3'], 'max_epoch'),
    wrong_epochs=(['train_cfg.max_epochs=many'], 'many'),
    negative_epochs=(['train_cfg.max_epochs=-1'], 'gives -4 iterations: there is nothing to do'),
    unknown_schedule_key=(['param_scheduler.0.T_maxx=5'], 'T_maxx'),
    wrong_schedule_value=(['param_scheduler.0.T_max=[3]'], "'T_max': [3]"),
    wrong_optimizer=(['optim_wrapper.optimizer.lrr=1'], 'lrr'),
    backbone_too_narrow=(['model.neck.in_channels=256'], 'Neck has in_channels=256'),
)


@pytest.fixture
def train(tiny, monkeypatch, capsys, repo, tmp_path):
    """tools/train.py in this process; what it printed last, and its exit code."""

    def call(*options, flags=()):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv('MMDENSE_TRACEBACK', raising=False)
        monkeypatch.setattr(sys, 'argv', ['train.py', *tiny(*options, flags=flags)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(repo / 'tools' / 'train.py'), run_name='__main__')
        return end.value.code, capsys.readouterr().err.strip().splitlines()[-1]

    return call


@pytest.fixture
def earlier(tiny):
    """A checkpoint that is there already."""
    tiny.work_dir.mkdir(parents=True)
    path = tiny.work_dir / 'epoch_1.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(3))), path)
    content = path.read_bytes()
    yield path
    assert path.read_bytes() == content


@pytest.mark.parametrize('case', CASES)
def test_one_line(case, train, earlier):
    options, message = CASES[case]
    code, line = train(*options)
    assert code == 1
    assert line.startswith('mmdense: error: ') and message in line


def test_in_a_worker(train, earlier, tmp_path):
    """What a data loader's worker raises comes with a traceback, which is not shown."""
    folder = tmp_path / 'broken'
    folder.mkdir()
    for i in range(8):
        (folder / f'{i}.jpg').write_text('not an image')
    code, line = train(
        f'train_dataloader.dataset.data_root={folder}', 'train_dataloader.num_workers=1'
    )
    assert code == 1
    assert line.startswith(f'mmdense: error: cannot read image {folder}')
    assert 'Traceback' not in line and len(line) < 400


@pytest.mark.parametrize(
    'write, message',
    [
        (write_html, 'is a web page'),
        (write_truncated, 'is damaged or cut short'),
        (write_bomb, 'which can run any code: refused'),
    ],
)
@pytest.mark.parametrize('how', ['resume', 'load_from', 'init_cfg'])
def test_checkpoints(write, message, how, train, earlier, tmp_path):
    path = tmp_path / 'given.pth'
    write(path)
    if how == 'resume':
        code, line = train(flags=('--resume', str(path)))
    elif how == 'load_from':
        code, line = train(f'load_from={path}')
    else:
        code, line = train(f'model.pretrained={path}')
    assert code == 1
    assert line.startswith('mmdense: error: ')
    assert message in line and str(path) in line
    assert not (tmp_path / 'it_ran').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='is not an error with a GPU')
def test_amp_on_a_slow_cpu(train, monkeypatch):
    for name in ('_is_amx_tile_supported', '_is_avx512_bf16_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    code, line = train(flags=('--amp',))
    assert code == 1 and '--amp saves no time here: this CPU computes in bfloat16' in line


def test_traceback_on_request(tiny, monkeypatch, repo):
    monkeypatch.setenv('MMDENSE_TRACEBACK', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', *tiny('model.queue_len=-1')])
    with pytest.raises(ValueError, match='queue_len'):
        runpy.run_path(str(repo / 'tools' / 'train.py'), run_name='__main__')


def test_lengths_in_epochs_under_a_loop_of_iterations(run, tiny):
    """MMEngine would take one epoch for the length of the run."""
    arguments = [
        a for a in tiny(algorithm=algorithms_of('momentum')[0]) if 'max_epochs' not in str(a)
    ]
    config = tiny.work_dir.parent / 'iterations.py'
    config.write_text(
        f'_base_ = {arguments[0]!r}\n'
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3)\n"
    )
    done = run(sys.executable, 'tools/train.py', config, *arguments[1:])
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert (
        'WarmupCosineLR counts epochs, the loop iterations: give it by_epoch=False, end=3' in last
    )
