# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from torch import nn

from mmdense.engine import BackboneExportHook, KeyQueueLogHook, LambdaWarmupHook
from mmdense.models import KeyQueue
from mmdense.utils.errors import InputError


class Log(list):
    def info(self, text):
        self.append(text)


class Hub(dict):
    def update_scalar(self, name, value):
        self[name] = value


def make_runner(model, **changes):
    runner = dict(
        model=model,
        iter=0,
        epoch=0,
        logger=Log(),
        message_hub=Hub(),
        hooks=[LoggerHook(interval=2)],
        train_dataloader=Loader(),
    )
    runner.update(changes)
    return SimpleNamespace(**runner)


class Loader:
    batch_size = 2

    def __len__(self):
        return 10


class Model(nn.Module):
    product = 'backbone'

    def __init__(self, queue_len=8):
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 1)
        self.queue = KeyQueue(4, queue_len)
        self.loss_lambda = 0.5

    def get_product(self):
        return self.backbone


def test_lambda_warmup():
    runner = make_runner(Model())
    hook = LambdaWarmupHook(start_iters=3)
    hook.before_train(runner)
    seen = []
    for runner.iter in range(5):
        hook.before_train_iter(runner, runner.iter)
        seen.append(runner.model.loss_lambda)
    assert seen == [0, 0, 0, 0.5, 0.5]
    # a run resumed within the warm-up
    runner.iter = 1
    hook.before_train_iter(runner, 1)
    assert runner.model.loss_lambda == 0
    hook.after_train(runner)
    assert runner.model.loss_lambda == 0.5


def test_lambda_warmup_says_what_it_needs():
    with pytest.raises(InputError, match='start_iters must be a whole number'):
        LambdaWarmupHook(-1)
    with pytest.raises(InputError, match='Linear has no loss_lambda'):
        LambdaWarmupHook().before_train(make_runner(nn.Linear(1, 1)))


def test_key_queue_log():
    runner = make_runner(Model(queue_len=8))
    hook = KeyQueueLogHook()
    hook.before_train(runner)
    (text,) = runner.logger
    assert '0% full' in text and 'for the next 4 iterations' in text
    assert 'ln(1 + 8) = 2.20' in text and 'not divergence' in text
    for runner.iter in range(4):
        runner.model.queue.enqueue(torch.ones(2, 4))
        hook.after_train_iter(runner, runner.iter)
        if runner.iter == 1:  # the logger writes every second iteration
            assert runner.message_hub['train/queue_fill'] == 0.5
    assert runner.message_hub['train/queue_fill'] == 1
    assert 'is full (iteration 4)' in runner.logger[-1] and len(runner.logger) == 2
    # a run that resumes with a full queue has nothing to explain
    runner.logger.clear()
    hook.before_train(runner)
    assert not runner.logger


def test_key_queue_log_without_a_queue():
    runner = make_runner(nn.Linear(1, 1))
    hook = KeyQueueLogHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 1)
    assert not runner.logger and not runner.message_hub


def test_backbone_export(tmp_path):
    runner = make_runner(Model(), work_dir=str(tmp_path), epoch=3, iter=30)
    hook = BackboneExportHook()
    checkpoint = dict(meta={})
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint['meta']['mmdense']['product'] == 'backbone'
    hook.after_train(runner)
    saved = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    assert torch.equal(saved['state_dict']['weight'], runner.model.backbone.weight)
    assert saved['meta']['mmdense'] == dict(
        version=saved['meta']['mmdense']['version'],
        algorithm='Model',
        product='',
        epoch=3,
        iter=30,
    )
    assert 'backbone.pth' in runner.logger[-1]
    assert not list(tmp_path.glob('*.part'))
