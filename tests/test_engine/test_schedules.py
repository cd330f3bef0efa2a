# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Schedules are as long as the run; one that is not is named, and a resumed run has its own."""

import re
import uuid
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmdense.engine import ExactResumeHook
from mmdense.engine.events import read_events
from mmdense.engine.training import build_training
from mmdense.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RECIPES = sorted(
    str(p.relative_to(CONFIGS))
    for p in CONFIGS.rglob('*.py')
    if not {'_base_', 'transfer'} & set(p.parts)
)
COSINE = dict(type='CosineAnnealingLR', by_epoch=True)
ITERATIONS = 3  # of an epoch


class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(list(inputs))).square().mean())


class Record(Hook):
    """Keep the learning rate that each iteration uses."""

    def __init__(self):
        self.lr = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.lr.append(runner.optim_wrapper.get_lr()['lr'][0])


def build(work_dir, schedules, epochs=None, iterations=None, lr=0.3, **settings):
    """Return a runner of a tiny model, prepared as tools/train.py does."""
    loop = dict(by_epoch=True, max_epochs=epochs) if epochs else dict(max_iters=iterations)
    if iterations:
        loop['by_epoch'] = False
    runner = Runner(
        model=Tiny(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='mmengine.pseudo_collate'),
            dataset=[dict(inputs=torch.ones(4))] * (2 * ITERATIONS),
        ),
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        param_scheduler=schedules,
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1000),
            checkpoint=dict(type='CheckpointHook', **settings.pop('checkpoint', {})),
        ),
        default_scope='mmdense',
        log_level='WARNING',
        cfg=Config(dict(param_scheduler=schedules, optim_wrapper=dict(optimizer=dict(lr=lr)))),
        experiment_name=uuid.uuid4().hex,
        **settings,
    )
    build_training(runner)
    return runner


def train(work_dir, schedules, epochs, **settings):
    """Train; return the learning rate of every iteration."""
    record = Record()
    build(work_dir, schedules, epochs, custom_hooks=[record, ExactResumeHook()], **settings).train()
    return record.lr


def walk(schedules, epochs, lr, work_dir):
    """Return the learning rate of every epoch, without training."""
    runner = build(work_dir, schedules, epochs, lr=lr)
    values = []
    for _ in range(epochs):
        values.append(runner.optim_wrapper.param_groups[0]['lr'])
        for scheduler in runner.param_schedulers:
            scheduler.step()
    return values


@pytest.fixture
def told(tmp_path):
    """Return the warnings about the schedules of a run."""

    def call(*schedules, **settings):
        runner = build(tmp_path / uuid.uuid4().hex, list(schedules), **settings)
        events = read_events(Path(runner.log_dir))
        assert {event['level'] for event in events} <= {'WARNING'}
        return [e['text'] for e in events if e['kind'] == 'setting_without_effect']

    return call


@pytest.mark.parametrize('path', RECIPES)
@pytest.mark.filterwarnings('ignore:Detected call')
def test_recipes_have_the_published_learning_rates(path, tmp_path):
    """The same as with the lengths that earlier releases wrote into each recipe, at every epoch."""
    cfg = Config.fromfile(str(CONFIGS / path))
    if 'param_scheduler' not in cfg:  # constant
        assert (
            cfg.model.type == 'DETReg' or cfg.model.type == 'DenseSiam' and 'decoder' in cfg.model
        )
        return
    # tests/test_models/test_ccop.py, tests/test_models/test_dino.py
    others = [s for s in cfg.param_scheduler if s.type == 'LinearWarmupLR' or 'param_name' in s]
    (schedule,) = [s for s in cfg.param_scheduler if s not in others]
    assert not {'T_max', 'end', 'milestones'} & set(schedule)
    if schedule.type != 'CosineAnnealingLR':
        # tests/test_engine/test_lars.py, tests/test_models/test_moco.py
        assert schedule.type in ('WarmupCosineLR', 'MultiStepShareLR')
        return
    epochs, lr = cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr
    earlier = dict(schedule.to_dict(), T_max=epochs, begin=0, end=epochs)
    now = walk([schedule.to_dict()], epochs, lr, tmp_path / 'now')
    assert now == walk([earlier], epochs, lr, tmp_path / 'earlier')
    assert now[0] == lr
    if not schedule.get('convert_to_iter_based'):  # which needs the iterations of an epoch
        assert now[-1] < lr * 0.03


STEPS = dict(type='MultiStepShareLR', shares=[0.6, 0.8], gamma=0.1)


@pytest.mark.parametrize('epochs', [10, 200])
def test_steps_at_shares_of_the_run(epochs, tmp_path, told):
    steps = [dict(type='MultiStepLR', milestones=[epochs * 6 // 10, epochs * 8 // 10])]
    expected = walk(steps, epochs, 0.3, tmp_path / 'steps')
    assert walk([STEPS], epochs, 0.3, tmp_path / 'shares') == expected
    assert expected[-1] == pytest.approx(0.003)
    for schedule in (STEPS, dict(STEPS, by_epoch=False), dict(STEPS, convert_to_iter_based=True)):
        assert told(schedule, epochs=5) == []


def test_steps_of_a_run_of_one_epoch(tmp_path, told):
    assert walk([STEPS], 1, 0.3, tmp_path) == [0.3]
    assert told(STEPS, epochs=1) == []
    with pytest.raises(InputError, match=r'shares must be in \[0, 1\], got 60'):
        told(dict(STEPS, shares=[60]), epochs=2)


WARMUP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2)
FITTING = dict(
    alone=[COSINE],
    explicit=[dict(COSINE, T_max=6, end=6)],
    explicit_curve=[dict(COSINE, T_max=6, end=60)],
    after_warmup=[WARMUP, dict(COSINE, begin=1)],
    converted=[dict(COSINE, T_max=5, begin=1, end=6, convert_to_iter_based=True)],
    steps=[dict(type='MultiStepLR', milestones=[2, 5])],
    iterations=[dict(type='MultiStepLR', by_epoch=False, milestones=[2, 17])],
    chain=[dict(COSINE, end=3), dict(type='PolyLR', by_epoch=True, begin=3)],
    step=[dict(type='StepLR', step_size=2)],
    exponential=[dict(type='ExponentialLR', gamma=0.9)],
    constant_after_warmup=[WARMUP],
    ours=[dict(type='WarmupCosineLR', warmup=2, convert_to_iter_based=True)],
)


@pytest.mark.parametrize('case', FITTING)
def test_schedules_as_long_as_the_run_are_not_named(case, told):
    assert told(*FITTING[case], epochs=6) == []


# of runs with 6 epochs of 3 iterations: the schedule, and words of the line
OTHERS = dict(
    longer=(dict(COSINE, T_max=200, end=200), 'is cut', 'epoch 200', 'epoch 6', 'T_max=6'),
    longer_curve=(dict(COSINE, T_max=7), 'is cut', 'epoch 6'),
    longer_end=(dict(type='PolyLR', by_epoch=True, end=9), 'is cut', 'param_scheduler.0.end=6'),
    shorter=(dict(COSINE, T_max=4, end=4), 'ends at epoch 4', 'stays as it is', 'T_max=6'),
    rising=(dict(COSINE, T_max=4), 'ends at epoch 4', 'rises again'),
    converted=(dict(COSINE, T_max=20, end=20, convert_to_iter_based=True), 'epoch 20', 'T_max=6'),
    iterations=(dict(COSINE, by_epoch=False, T_max=50, end=50), 'iteration 50', 'T_max=18'),
    milestones=(dict(type='MultiStepLR', milestones=[4, 8, 11]), 'milestones 8, 11', 'epoch 6'),
    milestone=(
        dict(type='MultiStepLR', by_epoch=False, milestones=[9, 18]),
        'milestone 18:',
        'iteration 18',
    ),
    step=(dict(type='StepLR', step_size=30), 'step_size is 30', 'step_size lower'),
    late=(dict(COSINE, begin=8, end=20), 'begins at epoch 8', 'begin lower'),
    warmup=(dict(type='LinearLR', start_factor=0.1, end=8), 'is cut', 'epoch 8'),
    ours=(dict(type='WarmupCosineLR', end=9), 'is cut', 'epoch 9'),
    only_warmup=(
        dict(type='WarmupCosineLR', warmup=8, convert_to_iter_based=True),
        'within the warm-up',
        '8 epochs',
        'warmup lower than 6',
    ),
    cycle=(dict(type='OneCycleLR', eta_max=1, total_steps=30, end=30), 'total_steps=6'),
    metric=(dict(type='ReduceOnPlateauLR', monitor='loss'), 'waits for a validation'),
)


@pytest.mark.parametrize('case', OTHERS)
def test_a_schedule_of_another_length_is_named(case, told, tmp_path):
    schedule, *words = OTHERS[case]
    (line,) = told(schedule, epochs=6)
    assert 'param_scheduler.0' in line and all(word in line for word in words), line
    remedy = dict(re.findall(r'param_scheduler\.0\.(\w+)=(\d+)', line))
    if remedy:  # it is followed to the letter
        assert told(dict(schedule, **{k: int(v) for k, v in remedy.items()}), epochs=6) == []
    if 'T_max' in line:
        rest = {k: v for k, v in schedule.items() if k not in ('T_max', 'end')}
        assert told(rest, epochs=6) == []


def test_loops_of_iterations(told):
    poly = dict(type='PolyLR', by_epoch=False)
    assert told(poly, iterations=10) == []
    (line,) = told(dict(poly, end=40000), iterations=10)
    assert 'ends at iteration 40000, the run at iteration 10' in line and '0.end=10' in line
    (line,) = told(dict(type='MultiStepLR', end=12, milestones=[8, 11]), iterations=10)
    assert 'it counts epochs, and the loop iterations' in line


def test_all_that_are_wrong_are_named(told):
    first, second = told(
        dict(WARMUP, end=99), dict(type='MultiStepLR', milestones=[60], begin=1), epochs=6
    )
    assert 'LinearLR (param_scheduler.0)' in first and 'MultiStepLR (param_scheduler.1)' in second


def test_save_best_without_validation(told):
    checkpoint = dict(save_best='auto')
    (line,) = told(COSINE, epochs=6, checkpoint=checkpoint)
    assert 'save_best' in line and 'the run has no validation' in line
    validation = dict(
        val_dataloader=dict(
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=[dict(inputs=torch.ones(4))],
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='DumpResults', out_file_path='x.pkl'),
    )
    assert told(COSINE, epochs=6, checkpoint=checkpoint, **validation) == []


WRONG = dict(
    T_max=dict(COSINE, T_max=[3]),
    text=dict(COSINE, T_max='3'),
    eta_min=dict(COSINE, eta_min='low'),
    gamma=dict(type='MultiStepLR', milestones=[1], gamma='x'),
    milestones=dict(type='MultiStepLR', milestones=['a']),
    later=dict(COSINE, begin=2, T_max=[3]),
    power=dict(type='PolyLR', power=[1]),
)


@pytest.mark.parametrize('case', WRONG)
def test_values_that_no_step_can_be_computed_from(case, tmp_path):
    with pytest.raises(InputError, match='param_scheduler.0.*cannot compute a step.*values are'):
        build(tmp_path, [WRONG[case]], epochs=6)


def test_the_trial_leaves_no_trace(tmp_path):
    schedules = [WARMUP, dict(COSINE, begin=1)]
    assert train(tmp_path / 'a', schedules, 4)[0] == pytest.approx(0.03)


@pytest.mark.parametrize(
    'schedules',
    [
        [COSINE],
        [WARMUP, dict(COSINE, begin=1)],
        [dict(type='WarmupCosineLR', warmup=2, convert_to_iter_based=True)],
        [dict(type='LinearLR', start_factor=0.1, end=2), dict(type='PolyLR', begin=2)],
    ],
)
@pytest.mark.parametrize('before, after', [(4, 7), (7, 5)])
def test_a_run_of_another_length_has_its_own_schedule(schedules, before, after, tmp_path):
    """To the last bit, also where the shorter run was over."""
    whole = train(tmp_path / 'whole', schedules, after)
    train(tmp_path / 'first', schedules, before, checkpoint=dict(interval=1))
    resumed = train(
        tmp_path / 'second',
        schedules,
        after,
        load_from=str(tmp_path / 'first' / 'epoch_4.pth'),
        resume=True,
    )
    assert resumed == pytest.approx(whole[4 * ITERATIONS :], rel=1e-12)
    log = next((tmp_path / 'second').glob('*/events.jsonl')).read_text()
    assert 'schedule_changed' in log


def test_a_run_of_the_same_length_keeps_its_schedule(tmp_path):
    """The learning rate is the checkpoint's, also where the config has another one."""
    train(tmp_path / 'first', [COSINE], 4, checkpoint=dict(interval=1))
    options = dict(load_from=str(tmp_path / 'first' / 'epoch_2.pth'), resume=True)
    resumed = train(tmp_path / 'second', [COSINE], 4, lr=7.0, **options)
    assert resumed == train(tmp_path / 'whole', [COSINE], 4)[2 * ITERATIONS :]
    longer = train(tmp_path / 'third', [COSINE], 6, lr=7.0, **options)
    assert longer == train(tmp_path / 'long', [COSINE], 6)[2 * ITERATIONS :]
