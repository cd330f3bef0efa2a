# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Nothing grows while a run goes on."""

import json
import os
import sys

import numpy as np
import psutil
import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner
from runs import tiny_config


class Watch(Hook):
    """Memory, open files and calls of functions so far, every so often."""

    priority = 'LOWEST'

    def __init__(self, every):
        self.every, self.seen, self.process, self.calls = every, [], psutil.Process(), 0

    def count(self, frame, event, argument):
        self.calls += event in ('call', 'c_call')

    def before_train(self, runner):
        sys.setprofile(self.count)

    def after_train(self, runner):
        sys.setprofile(None)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % self.every == 0:
            self.seen.append(
                (
                    runner.iter + 1,
                    self.process.memory_info().rss,
                    self.process.num_fds(),
                    self.calls,
                )
            )


def slope(x, y):
    """Of least squares, over the whole range of x, and twice its standard error."""
    x = np.asarray(x, float)
    (a, b), residuals, *_ = np.polyfit(x, y, 1, full=True)
    error = np.sqrt(residuals.sum() / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum())
    return a * np.ptp(x), 2 * error * np.ptp(x)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize('iterations', [600, pytest.param(20000, marks=pytest.mark.slow)])
def test_nothing_grows(iterations, images, tmp_path):
    cfg = tiny_config(
        images,
        tmp_path / 'work',
        **{
            'train_dataloader.batch_size': 2,
            'train_dataloader.dataset.pipeline.1.transforms.0.0.scale': 32,
            'train_cfg.max_epochs': iterations // 8,
            'param_scheduler.0.end': iterations // 8,
            'param_scheduler.0.T_max': iterations // 8,
            'optim_wrapper.optimizer.lr': 0.01,
            'default_hooks.logger.interval': 50,
            'default_hooks.checkpoint': dict(interval=iterations // 50, by_epoch=False),
            'vis_backends': [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
            'visualizer.vis_backends': [
                dict(type='LocalVisBackend'),
                dict(type='TensorboardVisBackend'),
            ],
            'log_level': 'WARNING',
        },
    )
    runner = Runner.from_cfg(cfg)
    watch = Watch(every=iterations // 100)
    runner.register_hook(watch)
    runner.train()
    steps, memory, files, calls = np.array(watch.seen[20:]).T  # after what is built at first
    growth, noise = slope(steps, memory / 2**20)
    print(f'memory: {growth:.2f} ± {noise:.2f} MiB over {np.ptp(steps):.0f} steps')
    assert growth < 2 * noise + 8  # MiB
    growth, noise = slope(steps, files)  # a file that is being written may be open
    assert growth < noise + 0.5 and np.ptp(files) <= 2
    per_step = np.diff(calls) / np.diff(steps)  # of time a busy machine says nothing
    first, last = (np.percentile(part, 25) for part in (per_step[:20], per_step[-20:]))
    print(f'calls of a step without a checkpoint: at first {first:.0f}, at last {last:.0f}')
    assert last < 1.02 * first
    # a line every 50 steps and at the end of an epoch, and as much on the disk
    lines = iterations / 50 + iterations / 8
    written = sum(f.stat().st_size for f in (tmp_path / 'work').rglob('*') if 'events' in f.name)
    print(f'TensorBoard: {written / iterations:.0f} bytes a step')
    assert 0 < written < 2000 * lines + 20_000
    (log,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    assert len([json.loads(line) for line in log.open()]) <= lines
    assert os.path.getsize(log) < 1000 * lines
