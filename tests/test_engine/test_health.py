# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A run that collapses is warned of, one that learns is not."""

import re
from contextlib import nullcontext
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from runs import tiny_config
from tiny_algorithms import algorithms, algorithms_of, each_algorithm, one_a_family, tiny_form
from torch.nn.functional import normalize

from mmdense.engine import HealthMonitorHook
from mmdense.engine.events import read_events
from mmdense.evaluation.collapse import measure_usage, spread
from mmdense.models import SelfSupervisor
from mmdense.models.heads.slot_contrast_head import (
    count_prototypes,
    kept_slots,
    slot_similarities,
)
from mmdense.models.utils import match_entropy, negative_similarity
from mmdense.utils.errors import InputError, MMDenseError

EXAMPLE = tiny_form().algorithm


class Record(Hook):
    """Keeps what the other hook has logged, and does something before each iteration."""

    priority = 'LOW'

    def __init__(self, act=None):
        self.act, self.values = act, {}

    def before_train_iter(self, runner, *_, **__):
        if self.act is not None:
            self.act(runner.model)

    def after_train_iter(self, runner, *_, **__):
        assert runner.model.health_monitor is None
        for name, scalar in runner.message_hub.log_scalars.items():
            if name.startswith('train/health_'):
                self.values.setdefault(name[len('train/health_') :], []).append(
                    float(scalar.current())
                )


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """64 pictures: colour fields, or photographs made small."""

    @lru_cache(maxsize=None)
    def make(source=None):
        folder = tmp_path_factory.mktemp('pictures')
        rng = np.random.default_rng(0)
        photographs = sorted(source.iterdir()) if source else [None] * 64
        for i, path in enumerate(photographs[:64]):
            if path is None:
                cells = int(rng.integers(2, 9))
                fields = rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)
                picture = Image.fromarray(fields).resize((64, 64), Image.BICUBIC)
            else:
                picture = Image.open(path).convert('RGB').resize((128, 96), Image.BILINEAR)
            picture.save(folder / f'{i:02}.jpg')
        return str(folder)

    return make


@pytest.fixture
def train(pictures, tmp_path):
    """Trains a tiny network by a recipe: what the monitor logged, look by look, and the log."""

    def call(
        algorithm,
        iterations=200,
        interval=50,
        seed=0,
        lr=1,
        act=None,
        photographs=None,
        ended=None,
    ):
        cfg = tiny_config(
            pictures(photographs),
            tmp_path,
            algorithm,
            **{
                'randomness.seed': seed,
                'train_dataloader.batch_size': 8,
                'train_cfg.max_epochs': iterations // 8,
                'default_hooks.checkpoint.interval': 10**6,
                'default_hooks.checkpoint.save_last': False,
                'default_hooks.logger.interval': interval,
                'default_hooks.health.interval': interval,
            },
        )
        schedule = cfg.param_scheduler[0]
        if 'T_max' in schedule:
            schedule.T_max = schedule.end = iterations // 8
        # the recipe's, for the smaller batch
        cfg.optim_wrapper.optimizer.lr *= lr * 8 / cfg.auto_scale_lr.base_batch_size
        runner = Runner.from_cfg(cfg)
        record = Record(act)
        runner.register_hook(record)
        with pytest.raises(ended) if ended else nullcontext():
            runner.train()
        log = next(tmp_path.glob('*/*.log')).read_text()
        values = {name: series[::interval] for name, series in record.values.items()}
        return values, log

    return call


def warnings(log):
    return re.findall(r'WARNING - (?:\S+ - \S+ - \d+ - )?(health_.*)', log)


@each_algorithm()
def test_what_is_logged(algorithm, train):
    """In the log's lines, documented, and within its range."""
    values, log = train(algorithm, iterations=8, interval=4)
    assert set(values) == set(tiny_form(algorithm).health)
    documented = HealthMonitorHook.__doc__
    for name, series in values.items():
        assert f'health_{name}: ' in log
        shown = re.sub(r'^stage_\d', 'stage_1', name)
        assert shown in documented or name.split('_', 1)[1] in documented
        low, high = (-1, 1) if 'similarity' in name else (0, 1)
        if name.endswith('_rank') or name.endswith('_used'):
            low, high = 1, 128
        assert all(low <= value <= high for value in series), name
    assert not warnings(log) and 'requires_grad=False' not in log


@pytest.mark.parametrize(
    'algorithm, seed',
    [(EXAMPLE, 5), (algorithms_of('momentum')[0], 6)]
    + [
        pytest.param(algorithm, seed, marks=pytest.mark.slow)
        for algorithm in algorithms()
        for seed in range(5)
    ],
)
def test_healthy(algorithm, seed, train, request):
    """Twenty runs, of which eight see photographs."""
    slow = request.node.get_closest_marker('slow')
    photographs = request.getfixturevalue('data_root') / 'unlabeled' if slow and seed % 2 else None
    iterations = dict(iterations=200) if slow else dict(iterations=80, interval=20)
    values, log = train(algorithm, seed=seed, photographs=photographs, **iterations)
    print('HEALTHY', algorithm, seed, {k: [round(v, 3) for v in vs] for k, vs in values.items()})
    assert len(values['global_std']) == 4 and not warnings(log)


def constant(part):
    """Return what makes the output of a part independent of the image."""

    def act(model):
        with torch.no_grad():
            for name, value in model.get_submodule(part).named_parameters():
                value.fill_(0 if name.endswith('weight') else 1)

    return act


@each_algorithm(quick=one_a_family())
def test_constant_features(algorithm, train):
    act = constant(tiny_form(algorithm).probed)
    values, log = train(algorithm, iterations=24, interval=8, act=act)
    (line, *more) = [w for w in warnings(log) if 'collapse' in w and 'global_std' in w]
    assert 'after 16 iterations: collapse' in line and 'the learning rate is' in line
    assert not more  # not again at the third look
    assert max(values['global_std']) < 1e-3


@pytest.mark.parametrize(
    'algorithm',
    [
        pytest.param(name, marks=[pytest.mark.slow] if name != EXAMPLE else [])
        for name in algorithms()
        if tiny_form(name).collapses
    ],
)
def test_learning_rate_a_hundred_times_too_high(algorithm, train):
    values, log = train(algorithm, lr=100)
    print('LR', algorithm, {k: [round(v, 3) for v in vs] for k, vs in values.items()})
    assert any('collapse' in line for line in warnings(log))


# ---------------------------------------------------------------- its parts


def test_spread():
    torch.manual_seed(0)
    sphere = normalize(torch.randn(1000, 16), dim=1)
    found = spread(sphere)
    assert 0.95 < found['std'] <= 1 and 15 < found['rank'] <= 16
    for x in (sphere, sphere[:5], normalize(sphere * torch.logspace(0, -3, 16), dim=1)):
        share = torch.linalg.svdvals(x.double())
        share = share / share.sum()
        torch.testing.assert_close(spread(x)['rank'], (-share * share.log()).sum().exp())
    constant = spread(sphere[:1].expand(50, -1))
    assert constant['std'] < 1e-6 and constant['rank'] < 1.001
    plane = normalize(torch.cat([torch.randn(500, 2), torch.zeros(500, 14)], dim=1), dim=1)
    assert 1.9 < spread(plane)['rank'] <= 2.0001
    assert spread(sphere.repeat(3, 1))['rank'] > 15  # of many rows some
    sphere[3, 5] = float('nan')
    assert all(value.isnan() for value in spread(sphere).values())


def test_a_look_at_a_step_that_is_not_finite(train):
    def infinite(model):
        with torch.no_grad():
            for value in model.neck.parameters():
                value.fill_(1e38)

    _, log = train(EXAMPLE, iterations=8, interval=4, act=infinite, ended=MMDenseError)
    assert 'its step is skipped' in log


def test_match_entropy():
    same = torch.zeros(3, 4, dtype=torch.long)
    each = torch.tensor([[2, 0, 1, 3]])
    assert match_entropy(same) == 0 and match_entropy(each) == 1
    half = match_entropy(torch.tensor([[0, 0, 5, 5], [2, 0, 1, 3]]))
    torch.testing.assert_close(half, torch.tensor(0.75).double())


def test_similarity_of_other_images():
    """By sums, as by the matrix of all pairs."""
    query, key = (normalize(torch.randn(3, 5, rows), dim=1) for rows in (4, 6))
    cosine = torch.einsum('ncs,mct->nsmt', query, key)  # of every pair
    others = ~torch.eye(3, dtype=torch.bool)[:, None, :, None].expand_as(cosine)
    torch.testing.assert_close(negative_similarity(query, key), cosine[others].mean())
    assert negative_similarity(query[:1], key[:1]).isnan()

    slots_q, slots_k = torch.randn(2, 3, 7, 5)  # of 3 images and 7 prototypes
    scores_q, scores_k = torch.randn(2, 3, 7, 2, 2)
    found = slot_similarities(slots_q, slots_k, scores_q, scores_k)
    both, kept_k = kept_slots(scores_q) & kept_slots(scores_k), kept_slots(scores_k)
    cosine = torch.einsum('nsc,mtc->nsmt', normalize(slots_q, dim=2), normalize(slots_k, dim=2))
    pairs = both[:, :, None, None] & kept_k
    own = torch.einsum('nsns->ns', cosine)[both].mean()
    different = cosine[pairs & ~torch.eye(3, dtype=torch.bool)[:, None, :, None]].mean()
    torch.testing.assert_close(found['slot_positive_similarity'](), own)
    torch.testing.assert_close(found['slot_negative_similarity'](), different)
    counted = count_prototypes(scores_q, scores_k)
    best = torch.cat([scores_q.argmax(1).flatten(), scores_k.argmax(1).flatten()])
    assert torch.equal(counted, torch.bincount(best, minlength=7))


def test_prototypes():
    """All cells of some looks to one of ten prototypes; then to all."""
    slots = torch.randn(2, 10, 8)
    scores = torch.zeros(2, 10, 3, 3)
    scores[:, 4] = 1
    hook = HealthMonitorHook()
    hook.usage, hook.values = {}, None
    hook._measure(
        dict(
            prototypes=count_prototypes(scores),
            **slot_similarities(slots, slots, scores, scores),
        )
    )
    assert hook.values['prototypes_used'] == 1 and hook.values['prototypes_dead'] == 0.9
    assert hook.values['slot_positive_similarity'] == pytest.approx(1)
    hook._measure(dict(prototypes=lambda: count_prototypes(torch.randn(2, 10, 30, 30))))
    assert hook.values['prototypes_used'] > 9 and hook.values['prototypes_dead'] == 0
    assert measure_usage('p', torch.ones(4))['p_used'] == pytest.approx(4)


def test_it_warns_once_until_it_is_over(tmp_path):
    said = []
    logger = SimpleNamespace(log=lambda level, text, **_: said.append(text))
    optimizer = SimpleNamespace(param_groups=[dict(lr=0.3)])
    runner = SimpleNamespace(
        logger=logger,
        log_dir=str(tmp_path),
        iter=49,
        epoch=0,
        optim_wrapper=SimpleNamespace(optimizer=optimizer),
    )
    hook = HealthMonitorHook()
    hook.before_train(SimpleNamespace(model=torch.nn.Linear(1, 1)))
    said_at = []
    for i, value in enumerate(
        [0.5, 0.04, 0.5, 0.04, 0.03, 0.02, 0.07, 0.04, 0.04, 0.2, 0.01, 0.01]
    ):
        before = len(said)
        hook._judge(runner, dict(dense_std=value, dense_rank=9.0))
        said_at += [i] * (len(said) - before)
    assert said_at == [4, 9, 11]
    assert said[0].startswith('health_dense_std is 0.03 after 50 iterations: collapse: ')
    assert said[0].endswith('the learning rate is 0.3.') and said[1].endswith('that is over.')
    hook._judge(runner, dict(dense_positive_similarity=1.0))
    assert len(said) == 3
    events = read_events(tmp_path)
    assert [event['kind'] for event in events] == ['health', 'health_recovered', 'health']
    assert events[0]['values'] == dict(dense_std=0.03) and events[0]['level'] == 'WARNING'


def test_probe_costs_nothing_between_checks():
    class Algorithm(SelfSupervisor, torch.nn.Module):
        health_monitor = None

        def __init__(self):
            torch.nn.Module.__init__(self)

    def fails():
        raise AssertionError('called without a check')

    model, seen = Algorithm(), []
    model.probe(dense=fails)
    model.health_monitor = seen.append
    model.probe(dense=fails, global_=1)
    assert seen == [dict(dense=fails, global_=1)]


@pytest.mark.parametrize('value', [0, -1, 1.5, True, None])
def test_bad_arguments(value):
    with pytest.raises(InputError, match='interval must be a whole number of at least 1'):
        HealthMonitorHook(interval=value)
