# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mmdense.checkpoints import read_checkpoint
from mmdense.engine import (
    BackboneExportHook,
    KeyQueueLogHook,
    LambdaWarmupHook,
    LossLogHook,
    MomentumEncoderHook,
    RegionWarmupHook,
)
from mmdense.engine.events import read_events
from mmdense.engine.hooks import region_warmup
from mmdense.models import KeyQueue, MomentumEncoder
from mmdense.utils.errors import InputError


class Log(list):
    def __init__(self):
        self.warnings = []

    def log(self, level, text, extra):
        self.append(text)
        if level == logging.WARNING:
            self.warnings.append(text)


class Hub(dict):
    def update_scalar(self, name, value):
        self[name] = value


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The log folder of a fake runner."""
    monkeypatch.chdir(tmp_path)


def make_runner(model, **changes):
    runner = dict(
        model=model,
        iter=0,
        epoch=0,
        logger=Log(),
        log_dir='.',
        message_hub=Hub(),
        hooks=[LoggerHook(interval=2)],
        train_dataloader=Loader(),
        optim_wrapper=make_wrapper(model),
    )
    runner.update(changes)
    return SimpleNamespace(**runner)


def make_wrapper(model, counts=1):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return OptimWrapper(torch.optim.SGD(parameters, lr=0.1), accumulative_counts=counts)


class Loader:
    batch_size = 2

    def __len__(self):
        return 10


class Model(nn.Module):
    product = 'backbone'

    def __init__(self, queue_len=8):
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 3)
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
    waits, starts = read_events(runner.log_dir)
    assert (waits['kind'], starts['kind']) == ('dense_loss_waits', 'dense_loss_starts')
    assert waits['iteration'] == starts['iteration'] == 4  # counted from 1, as in the log
    assert 'starts at iteration 4' in waits['text'] and '0.5 from there on' in waits['text']
    # a run resumed within the warm-up
    runner.iter = 1
    hook.before_train_iter(runner, 1)
    assert runner.model.loss_lambda == 0
    hook.after_train(runner)
    assert runner.model.loss_lambda == 0.5


def test_lambda_warmup_counts_steps_of_the_optimizer():
    model = Model()
    runner = make_runner(model, optim_wrapper=make_wrapper(model, counts=2))
    hook = LambdaWarmupHook(start_iters=2)
    hook.before_train(runner)
    seen = []
    for runner.iter in range(6):
        hook.before_train_iter(runner, runner.iter)
        seen.append(runner.model.loss_lambda)
    assert seen == [0, 0, 0, 0, 0.5, 0.5]
    assert [event['iteration'] for event in read_events(runner.log_dir)] == [5, 5]
    runner.iter = 6  # resumed after it
    hook.before_train(runner)
    assert len(read_events(runner.log_dir)) == 2


def test_region_warmup():
    model = Model()
    runner = make_runner(model, train_loop=None, max_epochs=4)
    with pytest.raises(InputError, match='RegionWarmupHook: Model has no region_head'):
        RegionWarmupHook(2).before_train(runner)
    model.region_head, model.region_weight = nn.Identity(), 0.1
    hook = RegionWarmupHook(2)
    hook.before_train(runner)
    seen = []
    for runner.epoch in (0, 1, 2, 3, 1):  # the last one is resumed
        hook.before_train_iter(runner, 0)
        seen.append(model.region_weight)
    assert seen == [0, 0, 0.1, 0.1, 0]
    hook.after_train(runner)
    assert model.region_weight == 0.1


def test_a_region_loss_that_never_starts(monkeypatch):
    lines = []
    monkeypatch.setattr(region_warmup, 'print_log', lambda line, **_: lines.append(line))
    model = Model()
    model.region_head, model.region_weight = nn.Identity(), 0.1
    runner = make_runner(model, train_loop=object.__new__(IterBasedTrainLoop), max_epochs=1)
    with pytest.raises(InputError, match='counts epochs, and this run counts iterations'):
        RegionWarmupHook(2).before_train(runner)
    runner = make_runner(model, train_loop=None, max_epochs=2)
    RegionWarmupHook(2).before_train(runner)
    assert lines == [
        'The region loss never starts: the run has 2 epochs, and its weight is 0 for 2. Set epochs '
        'of RegionWarmupHook in custom_hooks.'
    ]


class WithTwin(nn.Module):
    """A student, and a twin with a schedule."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(3, 2)
        self.twin = MomentumEncoder(self.student, momentum=0.5, end_momentum=0.0)


def train_with_twin(counts, iters):
    """The twin after each iteration."""
    model = WithTwin()
    wrapper = make_wrapper(model, counts)
    wrapper.initialize_count_status(model, 0, iters)
    runner = make_runner(model, optim_wrapper=wrapper, max_iters=iters)
    hook = MomentumEncoderHook()
    hook.before_train(runner)
    if counts == 1:
        model.twin.total_steps = iters  # MMEngine's runner says it
    twins = []
    for runner.iter in range(iters):
        hook.before_train_iter(runner, runner.iter)
        model.twin.update(model.student)
        twins.append((model.twin.current_momentum(), model.twin.module.weight.clone()))
        wrapper.update_params(model.student(torch.ones(1, 3)).square().sum())
    hook.after_train(runner)
    assert model.twin.enabled
    return twins


def test_the_twin_moves_once_a_step_of_the_optimizer():
    """Three times the same batch is that batch: twin and schedule must not tell them apart."""
    plain, accumulated = train_with_twin(1, 4), train_with_twin(3, 12)
    for i, (momentum, weight) in enumerate(accumulated):
        expected_momentum, expected = plain[i // 3]
        assert momentum == pytest.approx(expected_momentum)
        torch.testing.assert_close(weight, expected)
    assert not torch.equal(plain[1][1], plain[2][1])


class Noisy(BaseModel):
    """Two losses, different in each iteration."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='loss'):
        inputs = inputs.float()
        return dict(loss_a=(self.weight * inputs).mean(), loss_b=(self.weight * inputs**2).mean())


@pytest.fixture
def reads(monkeypatch):
    """In which iterations a tensor was read."""
    seen = []
    for name in ('item', 'tolist'):
        original = getattr(torch.Tensor, name)

        def read(self, original=original):
            if self.is_floating_point():
                seen.append(None)
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, read)
    return seen


@pytest.mark.parametrize('by_epoch', [True, False])
def test_loss_log(tmp_path, reads, by_epoch):
    """The log and what a checkpoint keeps of it are as without the hook; losses are read when a
    line is due."""
    written, kept, numbers = [], [], []
    for hooks in ([], [LossLogHook()]):
        reads.clear()
        work_dir = tmp_path / f'{len(hooks)}'
        train_cfg = dict(by_epoch=True, max_epochs=2) if by_epoch else dict(max_iters=22)
        runner = Runner(
            Noisy(),
            work_dir=str(work_dir),
            train_dataloader=dict(
                dataset=[dict(inputs=float(i)) for i in range(11)],
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
                batch_size=1,
            ),
            train_cfg=dict(by_epoch=by_epoch, **train_cfg) if not by_epoch else train_cfg,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=4),
                checkpoint=dict(
                    type='CheckpointHook', interval=1 if by_epoch else 6, by_epoch=by_epoch
                ),
            ),
            custom_hooks=hooks,
            log_processor=dict(window_size=3, by_epoch=by_epoch),
            experiment_name=f'{tmp_path.name}_{len(hooks)}',
            default_scope='mmengine',
        )
        runner.train()
        numbers.append(len(reads))
        (scalars,) = work_dir.glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in scalars.read_text().splitlines()]
        written.append([{k: v for k, v in x.items() if 'time' not in k} for x in lines])
        last = read_checkpoint(str(work_dir / ('epoch_2.pth' if by_epoch else 'iter_18.pth')))
        history = last['message_hub']['log_scalars']['train/loss_b']
        kept.append(history.data[0].tolist())
    assert written[0] == written[1] and len(written[0]) >= 4
    assert kept[0] == kept[1] and len(kept[0]) == (22 if by_epoch else 18)
    # three values in each of 22 iterations; one reading for each line, checkpoint and epoch
    assert numbers[0] >= 66 and numbers[1] <= 12


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
    fills, full = read_events(runner.log_dir)
    assert fills['kind'] == 'queue_fills' and fills['iterations_left'] == 4
    assert full['kind'] == 'queue_full' and full['iteration'] == 4
    assert full['text'] == runner.logger[-1]
    # a run that resumes with a full queue has nothing to explain
    runner.logger.clear()
    hook.before_train(runner)
    assert not runner.logger
    runner.iter = 0
    hook.after_train_iter(runner, 0)
    assert not runner.logger


def test_key_queue_log_says_when_it_is_full():
    """Not when the next line is logged."""
    runner = make_runner(Model(queue_len=2))
    hook = KeyQueueLogHook()
    hook.before_train(runner)
    assert 'for the next 1 iteration (2 keys, 2 an iteration)' in runner.logger[0]
    runner.iter = 0
    runner.model.queue.enqueue(torch.ones(2, 4))
    hook.after_train_iter(runner, 0)  # the logger writes every second iteration
    assert 'is full (iteration 1)' in runner.logger[-1]
    assert runner.message_hub.get('train/queue_fill') is None
    runner.iter = 1
    hook.after_train_iter(runner, 1)
    assert runner.message_hub['train/queue_fill'] == 1 and len(runner.logger) == 2


@pytest.mark.parametrize('momentum, queue_len, warns', [(0.02, 2048, True), (0.004, 2048, False)])
def test_keys_that_give_themselves_away_by_their_age(momentum, queue_len, warns):
    """1.28 horizons, by which features had four dimensions, and 0.26."""
    model = Model(queue_len=queue_len)
    model.twin = MomentumEncoder(nn.Linear(1, 1), momentum)
    runner = make_runner(model, train_dataloader=SimpleNamespace(batch_size=32))
    KeyQueueLogHook().before_train(runner)
    warnings = runner.logger.warnings
    assert bool(warnings) == warns
    if warns:
        assert (
            '1.3 horizons of the' in warnings[0] and 'model.queue_len to 384 or so' in warnings[0]
        )


def test_key_queue_log_without_a_queue():
    runner = make_runner(nn.Linear(1, 1))
    hook = KeyQueueLogHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 1)
    assert not runner.logger and not runner.message_hub


def test_backbone_export(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint='/home/me/a.pth')
    kind = dict(type='mmpretrain.ConvNeXt', arch='atto', out_indices=(0, 3))
    cfg = Config(dict(model=dict(backbone=dict(kind, init_cfg=init_cfg)), data_root='/home/me'))
    runner = make_runner(Model(), work_dir=str(tmp_path), epoch=3, iter=30, cfg=cfg)
    runner.model.to(memory_format=torch.channels_last)
    hook = BackboneExportHook()
    checkpoint = dict(meta={}, state_dict=runner.model.state_dict())
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint['meta']['mmdense']['product'] == 'backbone'
    # other programs, such as safetensors, want them with their channels first
    assert not runner.model.backbone.weight.is_contiguous()
    assert checkpoint['state_dict']['backbone.weight'].is_contiguous()
    hook.after_train(runner)
    saved = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    assert torch.equal(saved['state_dict']['weight'], runner.model.backbone.weight)
    assert saved['state_dict']['weight'].is_contiguous()
    assert saved['meta']['mmdense'] == dict(
        version=saved['meta']['mmdense']['version'],
        algorithm='Model',
        product='',
        epoch=3,
        iter=30,
        backbone=kind,  # which is read where the tensors do not show it
    )
    assert 'backbone.pth' in runner.logger[-1]
    assert not list(tmp_path.glob('*.part'))
    # what could not be built from a file is not written; nor is training lost by it
    cfg.model.backbone.type = 'my_project.Backbone'
    hook.after_train(runner)
    saved = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    assert 'backbone' not in saved['meta']['mmdense']
