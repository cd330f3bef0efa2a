# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""tools/dist_train.sh with two processes: told to end, and one of them killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mmdense.checkpoints import latest_complete_checkpoint


@pytest.fixture
def start(repo, tiny, free_port, tmp_path):
    """Starts a run without end; the process, and its log."""

    def call(*options, flags=(), **env):
        arguments = tiny(
            'train_cfg.max_epochs=1000',
            'param_scheduler.0.end=1000',
            'default_hooks.checkpoint.by_epoch=False',
            'default_hooks.checkpoint.interval=3',
            'model.backbone.base_channels=8',
            'model.backbone.stem_channels=8',
            'model.neck.in_channels=64',
            'train_dataloader.num_workers=1',
            *options,
            flags=flags,
        )
        config, *rest = arguments
        log = tmp_path / 'log.txt'
        with log.open('a') as file:
            process = subprocess.Popen(
                ['bash', str(repo / 'tools' / 'dist_train.sh'), config, '2', *rest],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, PORT=str(free_port), PYTHON=sys.executable, **env),
                start_new_session=True,
            )
        started.append(process)
        return process, log

    started = []
    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition, process, log, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def training_processes(process):
    """Of each rank, without its data loader's workers."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
            parents = [p for p in child.parents() if 'train.py' in ' '.join(p.cmdline())]
        except psutil.NoSuchProcess:  # a short-lived one, which has ended since
            continue
        if '--launcher' in words and 'torch.distributed.run' not in words:
            found.append((len(parents), child))
    depth = min(d for d, _ in found)
    return [child for d, child in found if d == depth]


def iteration(work_dir):
    path = latest_complete_checkpoint(str(work_dir))
    return torch.load(path, weights_only=False)['meta']['iter'] if path else 0


def assert_nothing_left(session, port):
    """No process of the session, and the port is free."""
    deadline = time.time() + 20  # workers look for their parent every five seconds
    while time.time() < deadline:
        left = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == session:
                    left.append(process)
            except (ProcessLookupError, PermissionError):
                continue
        if not left:
            break
        time.sleep(0.5)
    assert not left
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('127.0.0.1', port))


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_it_ends_while_it_waits_for_another_node(name, start, free_port):
    process, log = start(NNODES='2', NODE_RANK='1')
    wait_for(lambda: len(psutil.Process(process.pid).children()) == 1, process, log)
    time.sleep(8)  # torch is imported
    os.kill(process.pid, getattr(signal, name))
    assert process.wait(60) != 0
    assert_nothing_left(process.pid, free_port)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1'])
def test_signals_are_handed_on(name, start, tiny, free_port):
    """To the script: saved, exit code 0. (And to the loaders' workers, SIGUSR1 to torchrun too, as
    schedulers that send it to all of a step's processes do.)"""
    work_dir = Path(tiny.work_dir)
    process, log = start()
    wait_for(lambda: iteration(work_dir) >= 3, process, log)
    sent = time.time()
    if name == 'SIGTERM':
        for rank in training_processes(process):
            for worker in rank.children():
                worker.terminate()
    if name == 'SIGUSR1':  # as slurm does: to all of the step's processes
        os.killpg(process.pid, signal.SIGUSR1)
    else:
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0, log.read_text()[-3000:]
    assert time.time() - sent < 30
    text = log.read_text()
    saved = re.findall(rf'{name}: saved (\S+) and ended', text)
    assert len(saved) == 1 and saved[0] == latest_complete_checkpoint(str(work_dir))
    assert 'Traceback' not in text
    assert_nothing_left(process.pid, free_port)


@pytest.mark.slow
def test_one_rank_dies(start, tiny, free_port):
    """The other ends, and the log says who was first; nothing is left. With MAX_RESTARTS all
    start again, from the last checkpoint."""
    work_dir = Path(tiny.work_dir)
    process, log = start()
    wait_for(lambda: iteration(work_dir) >= 3, process, log)
    killed = time.time()
    training_processes(process)[1].kill()
    assert process.wait(60) != 0 and time.time() - killed < 60
    text = log.read_text()
    assert 'Signal 9 (SIGKILL)' in text
    assert_nothing_left(process.pid, free_port)

    reached = iteration(work_dir)
    process, log = start(flags=['--resume'], MAX_RESTARTS='1')
    wait_for(lambda: iteration(work_dir) > reached, process, log)
    training_processes(process)[0].kill()
    reached = iteration(work_dir)
    wait_for(lambda: iteration(work_dir) > reached + 3, process, log)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0
    assert_nothing_left(process.pid, free_port)
