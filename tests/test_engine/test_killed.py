# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What is on the disk when a run was killed, told to end, or had no room."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from processes import PROCESSES
from runs import tiny_config, train

from mmdense.checkpoints import latest_complete_checkpoint
from mmdense.engine import CheckpointHook, PreemptionHook
from mmdense.engine.events import read_events
from mmdense.utils.files import atomic_write, remove_parts


@pytest.fixture
def config(images, tmp_path):
    """A run without end that writes a checkpoint in every step."""

    def make(work_dir='work', **options):
        return tiny_config(
            images,
            tmp_path / work_dir,
            **{
                'default_hooks.checkpoint': dict(interval=1, by_epoch=False, max_keep_ckpts=2),
                'train_cfg.max_epochs': 1000,
                'param_scheduler.0.end': 1000,
                'param_scheduler.0.T_max': 1000,
                **options,
            },
        )

    return make


@pytest.fixture
def start(config, tmp_path):
    """Starts it, from the newest checkpoint; the process."""

    def call(**options):
        found = latest_complete_checkpoint(str(tmp_path / 'work'))
        path = str(tmp_path / 'config.py')
        config(load_from=found, resume=found is not None, **options).dump(path)
        process = PROCESSES.Process(target=train, args=(path,))
        process.start()
        return process

    return call


def iteration(work_dir):
    path = latest_complete_checkpoint(str(work_dir))
    return torch.load(path, weights_only=False)['meta']['iter'] if path else 0


@pytest.mark.parametrize('kills', [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, start, tmp_path):
    """Whole files only, at most one interval lost, and on from there."""
    rng = random.Random(kills)
    work_dir = tmp_path / 'work'
    last = 0
    for _ in range(kills):
        process = start()
        deadline = time.time() + 120
        while iteration(work_dir) <= last and process.is_alive() and time.time() < deadline:
            time.sleep(0.05)
        assert process.is_alive(), (tmp_path / 'config.py.log').read_text()[-2000:]
        time.sleep(rng.random() * 0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        names = [n for n in os.listdir(work_dir) if n.endswith('.pth') and not n.startswith('.')]
        # two, and where it was killed before the third was deleted, three
        assert 1 <= len(names) <= 3
        for name in names:
            saved = torch.load(work_dir / name, weights_only=False)
            assert f'iter_{saved["meta"]["iter"]}.pth' == name
        reached = iteration(work_dir)
        assert reached > last
        # of what was finished, at most the checkpoint that was being written is lost
        assert (work_dir / 'last_checkpoint').read_text().endswith('.pth')
        assert max(int(n[5:-4]) for n in names) - reached <= 1
        last = reached
    assert not [n for n in os.listdir(work_dir) if n.endswith('.pth') and n.startswith('.')]


def test_ended_by_a_signal(start, tmp_path):
    """Saved where it is, not at the interval; --resume goes on from there, and cleans up."""
    work_dir = tmp_path / 'work'
    for name in ('SIGTERM', 'SIGUSR1'):
        process = start(
            **{'default_hooks.checkpoint.interval': 10**6, 'train_dataloader.num_workers': 1}
        )
        log = tmp_path / 'config.py.log'
        deadline = time.time() + 120
        steps = log.read_text().count('Epoch(train)') if log.exists() else 0
        while time.time() < deadline:
            if log.exists() and log.read_text().count('Epoch(train)') > steps + 1:
                break
            time.sleep(0.1)
        before = iteration(work_dir)
        sent = time.time()
        os.kill(process.pid, getattr(signal, name))
        process.join(60)
        assert process.exitcode == 0 and time.time() - sent < 30
        assert iteration(work_dir) > before
        assert f'{name}: saved' in log.read_text()
        (*_, saved, ended) = read_events(max(work_dir.glob('*/events.jsonl')).parent)
        assert saved['kind'] == 'checkpoint' and ended['kind'] == 'preempted'
        assert ended['signal'] == name and ended['iterations'] == iteration(work_dir)
        assert ended['checkpoint'] == saved['path']
        assert len(list(work_dir.glob('*.pth'))) == 1  # it has replaced that of the first signal
    process = start(**{'train_cfg.max_epochs': iteration(work_dir) // 4 + 1})
    process.join(120)
    assert process.exitcode == 0
    assert len(list(work_dir.glob('*.pth'))) <= 2


def test_nothing_to_save_with(config):
    """Signals end such a run, as they would without the hook."""
    cfg = config(**{'default_hooks.checkpoint.type': 'mmengine.CheckpointHook'})
    runner = Runner.from_cfg(cfg)
    hook = next(h for h in runner.hooks if isinstance(h, PreemptionHook))
    before = signal.getsignal(signal.SIGTERM)
    hook.before_train(runner)
    assert signal.getsignal(signal.SIGTERM) is before
    log = next(Path(cfg.work_dir).glob('*/*.log')).read_text()
    assert "PreemptionHook needs mmdense's CheckpointHook" in log


# ---------------------------------------------------------------- no room, no permission


def run(cfg, monkeypatch, fails):
    """Runs it; the third and later files cannot be written, as ``fails`` says."""
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr('mmdense.engine.hooks.checkpoint.atomic_write', fails)
    return runner.train()


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_no_room(code, config, monkeypatch, tmp_path):
    """The checkpoints that are there stay; the run goes on, and fails at its end only."""
    written = []

    def full(path):
        written.append(path)
        if len(written) > 4:  # two checkpoints with their last_checkpoint
            raise OSError(code, os.strerror(code))
        return atomic_write(path)

    cfg = config(**{'train_cfg.max_epochs': 1})
    with pytest.raises(OSError, match=os.strerror(code)):
        run(cfg, monkeypatch, full)
    work_dir = tmp_path / 'work'
    names = sorted(n for n in os.listdir(work_dir) if n.endswith('.pth'))
    assert names == ['iter_1.pth', 'iter_2.pth']
    assert latest_complete_checkpoint(str(work_dir)) == str(work_dir / 'iter_2.pth')
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'cannot write the checkpoint iter_3.pth' in log and 'training continues' in log
    events = read_events(next(work_dir.glob('*/events.jsonl')).parent)
    failed = [event for event in events if event['kind'] == 'checkpoint_failed']
    assert failed[0]['level'] == 'ERROR' and failed[0]['reason'] == os.strerror(code)
    assert failed[0]['path'].endswith('iter_3.pth')
    assert not any(event['kind'] == 'finished' for event in events)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of some megabytes at the work directory, which can be made larger."""
    work_dir = tmp_path / 'work'
    work_dir.mkdir()

    def mount(options):
        command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(work_dir)]
        return subprocess.run(command, capture_output=True).returncode

    if sys.platform != 'linux' or mount('size=6m'):
        pytest.skip('needs the right to mount')
    yield lambda size: mount(f'remount,size={size}')
    subprocess.run(['umount', '-l', str(work_dir)], check=True)


def test_a_full_disk(small_disk, config, tmp_path, capfd):
    """What is there stays whole; the run goes on to its end, and from the last checkpoint when
    there is room again."""
    work_dir = tmp_path / 'work'

    class Fill(Hook):
        priority = 'VERY_HIGH'

        def after_train_iter(self, runner, *_, **__):
            if runner.iter == 3:  # to the last page, and that of each file
                with suppress(OSError), (work_dir / 'filler').open('wb', buffering=0) as f:
                    while True:
                        f.write(bytes(4096))
                for scalars in work_dir.glob('*/vis_data/*.json'):
                    with suppress(OSError), scalars.open('ab', buffering=0) as f:
                        while True:
                            f.write(b'\n')

    options = {'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.max_keep_ckpts': -1}
    runner = Runner.from_cfg(config(**options))
    runner.register_hook(Fill())
    with pytest.raises(OSError, match='No space left'):
        runner.train()
    assert runner.iter == 7  # in the last one
    saved = sorted(work_dir.glob('*.pth'))
    assert saved and len(saved) < 8
    for path in saved:
        torch.load(path, weights_only=False)
    last = latest_complete_checkpoint(str(work_dir))
    assert last == str(work_dir / f'iter_{len(saved)}.pth')
    said = capfd.readouterr().out
    assert re.search('cannot write the checkpoint iter_[0-9].pth .*training continues', said)
    assert len(re.findall('cannot write to .*json: No space left on device', said)) == 1
    assert small_disk('60m') == 0
    Runner.from_cfg(config(**options, load_from=last, resume=True)).train()
    assert latest_complete_checkpoint(str(work_dir)) == str(work_dir / 'iter_8.pth')
    assert not list(work_dir.glob('.*.part'))


def test_no_room_for_the_best(config, monkeypatch, tmp_path):
    """The best one before stays, and the run goes on."""

    def full(path):
        if 'best' in str(path) and '_2' in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return atomic_write(path)

    class Score(Hook):
        def after_train_iter(self, runner, *_, **__):
            hook = next(h for h in runner.hooks if isinstance(h, CheckpointHook))
            hook._save_best_checkpoint(runner, dict(score=runner.iter))

    cfg = config(
        **{
            'train_cfg.max_epochs': 1,
            'default_hooks.checkpoint.save_best': 'score',
            'default_hooks.checkpoint.rule': 'greater',
            'default_hooks.checkpoint.interval': 4,
        }
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Score())
    monkeypatch.setattr('mmdense.engine.hooks.checkpoint.atomic_write', full)
    runner.train()
    work_dir = tmp_path / 'work'
    names = sorted(n for n in os.listdir(work_dir) if n.startswith('best'))
    assert names == ['best_score_iter_1.pth', 'best_score_iter_3.pth']
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'cannot write the best checkpoint to' in log and 'the one before stays' in log


def test_save_now_leaves_what_is_regular_and_what_is_anothers(config, tmp_path):
    class Save(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, *_, **__):
            hook = next(h for h in runner.hooks if isinstance(h, CheckpointHook))
            if runner.iter in (1, 2):
                hook.save_now(runner)
            if runner.iter == stop:
                raise KeyboardInterrupt

    stop, options = None, {'train_cfg.max_epochs': 1, 'default_hooks.checkpoint.interval': 2}
    runner = Runner.from_cfg(config(**options))
    runner.register_hook(Save())
    runner.train()
    work_dir = tmp_path / 'work'
    assert sorted(p.name for p in work_dir.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']

    stop, options['default_hooks.checkpoint.interval'] = 1, 3
    runner = Runner.from_cfg(config(**options, work_dir='first'))
    runner.register_hook(Save())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    first = tmp_path / 'first' / 'iter_2.pth'
    resumed = dict(options, load_from=str(first), resume=True)
    Runner.from_cfg(config(**resumed, work_dir='second')).train()
    assert first.exists() and (tmp_path / 'second' / 'iter_3.pth').exists()


def test_atomic_write(tmp_path):
    path = tmp_path / 'deep' / 'a.txt'
    with atomic_write(str(path)) as part, open(part, 'w') as f:
        f.write('old')
        assert not path.exists()
    assert path.read_text() == 'old'
    with pytest.raises(KeyboardInterrupt), atomic_write(str(path)) as part, open(part, 'w') as f:
        f.write('new')
        raise KeyboardInterrupt
    assert path.read_text() == 'old' and os.listdir(path.parent) == ['a.txt']
    (path.parent / '.b.txt.part').write_text('half')
    remove_parts(str(path.parent))
    assert os.listdir(path.parent) == ['a.txt']


# ---------------------------------------------------------------- which one to resume from


def test_torn_files_are_passed_over(tmp_path, caplog):
    work_dir = str(tmp_path)
    assert latest_complete_checkpoint(work_dir) is None
    assert latest_complete_checkpoint(str(tmp_path / 'none')) is None
    for i in (1, 2, 3):
        torch.save(dict(a=torch.rand(1000)), tmp_path / f'epoch_{i}.pth')
        os.utime(tmp_path / f'epoch_{i}.pth', (i, i))
    assert latest_complete_checkpoint(work_dir) == str(tmp_path / 'epoch_3.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert latest_complete_checkpoint(work_dir) == str(tmp_path / 'epoch_2.pth')
    content = (tmp_path / 'epoch_2.pth').read_bytes()
    (tmp_path / 'epoch_2.pth').write_bytes(content[:-100])
    assert latest_complete_checkpoint(work_dir) == str(tmp_path / 'epoch_3.pth')
    damaged = bytearray((tmp_path / 'epoch_3.pth').read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / 'epoch_3.pth').write_bytes(damaged)
    assert latest_complete_checkpoint(work_dir) == str(tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/epoch_9.pth')
    assert latest_complete_checkpoint(work_dir) == 's3://bucket/epoch_9.pth'
