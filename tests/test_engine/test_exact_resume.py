# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A resumed run is the uninterrupted one, bit by bit."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from runs import tiny_config
from tiny_algorithms import algorithms_of, each_algorithm, tiny_form

from mmdense.datasets import ResumableSampler, UnlabeledDataset
from mmdense.engine import CheckpointHook, ExactResumeHook
from mmdense.engine.events import read_events
from mmdense.utils.errors import CheckpointError
from mmdense.utils.randomness import seed_all, seeded


@pytest.fixture
def train(images, tmp_path):
    """A run of an algorithm's recipe in this process, tiny: two epochs of four steps, a checkpoint
    every two. Their paths, by iteration."""

    def call(algorithm=None, name='whole', resume=None, **options):
        cfg = tiny_config(
            images,
            tmp_path / name,
            algorithm,
            load_from=resume and str(resume),
            resume=resume is not None,
            **options,
        )
        runner = Runner.from_cfg(cfg)
        seed_all(np.random.randint(10**9))  # whatever came before is no matter
        runner.train()
        return lambda iteration: tmp_path / name / f'iter_{iteration}.pth'

    return call


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(a, b, where=''):
    """Two checkpoints' contents, to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b)):
            assert_same(one, other, f'{where}[{i}]')
    else:
        assert a == b or a != a, where


STATE = ('state_dict', 'optimizer', 'param_schedulers')


@each_algorithm()
def test_bit_for_bit(algorithm, train):
    """In the middle of the first epoch, and at its end."""
    whole = train(algorithm)
    for stopped in (2, 4):
        resumed = train(algorithm, f'from_{stopped}', whole(stopped))
        a, b = load(whole(8)), load(resumed(8))
        for part in STATE:
            assert_same(a[part], b[part], part)
        assert (a['meta']['epoch'], a['meta']['iter']) == (b['meta']['epoch'], b['meta']['iter'])
    # the comparison can fail
    with pytest.raises(AssertionError):
        assert_same(load(whole(6))['state_dict'], load(whole(8))['state_dict'])


def test_the_log_has_the_same_lines(train, tmp_path):
    """In the middle of an epoch too: the batch in the epoch, the losses, averages over an epoch."""
    options = {'default_hooks.logger.interval': 2, 'default_hooks.checkpoint.interval': 1}
    options['log_processor.custom_cfg'] = [
        dict(data_src='loss', method_name='mean', log_name='mean', window_size='epoch')
    ]
    whole = train(**options)
    train(None, 'resumed', whole(5), **options)

    def read(name):
        log = next((tmp_path / name).glob('*/*.log')).read_text()
        return re.findall(r'Epoch\(train\) +(\[\d+\]\[\d/4\]).*?(loss: .*)', log)

    lines = read('whole')
    assert [where for where, _ in lines] == ['[1][2/4]', '[1][4/4]', '[2][2/4]', '[2][4/4]']
    assert 'mean: ' in lines[0][1] and len(set(lines)) == 4
    assert read('resumed') == lines[2:]


def test_the_hook_and_the_sampler_are_what_makes_it_so(train):
    whole = train()
    resumed = train(None, 'resumed', whole(4), **{'default_hooks.exact_resume': None})
    with pytest.raises(AssertionError):
        assert_same(load(whole(8))['state_dict'], load(resumed(8))['state_dict'])


def test_the_number_of_workers_changes_nothing(train):
    seeds = {'randomness.seed': 3}
    algorithm = algorithms_of('momentum')[0]
    alone = train(algorithm, **seeds)
    helped = train(algorithm, 'helped', **seeds, **{'train_dataloader.num_workers': 2})
    other = train(algorithm, 'other', **{'randomness.seed': 4})
    assert_same(load(alone(8))['state_dict'], load(helped(8))['state_dict'])
    with pytest.raises(AssertionError):
        assert_same(load(alone(8))['state_dict'], load(other(8))['state_dict'])


@each_algorithm(quick=[tiny_form().algorithm, 'SwAV'], resnets=True)
def test_two_processes(algorithm, run_forked, tiny, tmp_path):
    """In the middle of an epoch; with the statistics of BatchNorm, and the queue, of each."""

    def train(name, *flags):
        tiny.work_dir = tmp_path / name
        options = [
            'default_hooks.checkpoint.by_epoch=False',
            'default_hooks.checkpoint.max_keep_ckpts=-1',
            'default_hooks.checkpoint.interval=3',
            'model.backbone.stem_channels=8',
            'model.backbone.base_channels=8',
            'train_dataloader.batch_size=2',
            'train_dataloader.num_workers=1',
        ]
        if tiny_form(algorithm).family != 'detector':  # whose neck asks the backbone
            options.append('model.neck.in_channels=64')
        arguments = tiny(*options, flags=flags, algorithm=algorithm)
        done = run_forked('tools/train.py', *arguments, '--launcher', 'pytorch', number=2)
        assert done.returncode == 0, done.stdout[-3000:]
        return load(tiny.work_dir / 'iter_8.pth')

    whole = train('whole')
    resumed = train('resumed', '--resume', str(tmp_path / 'whole' / 'iter_3.pth'))
    for part in (*STATE, 'process_buffers'):
        assert_same(whole.get(part), resumed.get(part), part)
    if tiny_form(algorithm).family == 'detector':  # its BatchNorm is frozen
        assert 'process_buffers' not in whole
        return
    means = whole['process_buffers']['backbone.bn1.running_mean']
    assert len(means) == 2 and not torch.equal(*means)
    queues = whole['process_buffers'].get('queue.features')
    assert (queues is not None) == ('queue.features' in whole['state_dict'])
    assert queues is None or (queues.any(-1).all() and not torch.equal(*queues))
    assert_same(whole['state_dict']['backbone.bn1.running_mean'], means[0])


@pytest.mark.parametrize('name', ['process_buffers', 'bn_statistics'])
def test_every_process_takes_its_own_buffers(name, monkeypatch):
    """Older checkpoints have them under the second name."""
    for function, value in (('get_world_size', 2), ('get_rank', 1)):
        monkeypatch.setattr(
            f'mmdense.engine.hooks.checkpoint.{function}', lambda value=value: value
        )
    checkpoint = dict(state_dict=dict(mean=torch.zeros(1)))
    checkpoint[name] = dict(mean=torch.tensor([[2.0], [3.0]]))
    CheckpointHook().after_load_checkpoint(None, checkpoint)
    assert checkpoint['state_dict']['mean'] == 3


def test_another_batch_size(train, tmp_path):
    """Schedules by epoch: on with the next sample. By iteration: there is no such place."""
    by_epoch = train()
    resumed = train(None, 'half', by_epoch(6), **{'train_dataloader.batch_size': 2})
    meta = load(resumed(16))['meta']  # 4 + 4 more steps of an epoch of 8
    assert (meta['epoch'], meta['iter']) == (1, 16)
    (folder,) = {path.parent for path in (tmp_path / 'half').glob('*/events.jsonl')}
    events = {event['kind']: event for event in read_events(folder)}
    changed, started = events['resumed_with_difference'], events['started']
    assert changed['level'] == 'WARNING'
    assert (changed['before']['total batch'], changed['now']['total batch']) == (4, 2)
    assert started['resumed'] and started['resumed_from'] == str(by_epoch(6))
    assert started['iter'] == changed['iteration']
    assert load(resumed(14))['meta']['iter'] == 14 and not resumed(10).exists()
    algorithm = algorithms_of('momentum')[0]
    by_iteration = train(algorithm, 'by_iteration')
    with pytest.raises(CheckpointError, match='total batch 4 → 2.*load_from') as e:
        train(algorithm, 'no', by_iteration(6), **{'train_dataloader.batch_size': 2})
    assert '\n' not in str(e.value)


def test_a_checkpoint_that_says_nothing_of_its_course(train, tmp_path):
    """Of mmpretrain, say: on where it was, or with a whole epoch where that cannot be."""
    whole = train()
    saved = load(whole(6))
    del saved['meta']['course']
    torch.save(saved, tmp_path / '6.pth')
    same = train(None, 'same', tmp_path / '6.pth')
    assert_same(load(whole(8))['state_dict'], load(same(8))['state_dict'])
    half = {'train_dataloader.batch_size': 2, 'default_hooks.checkpoint.interval': 1}
    train(None, 'half', tmp_path / '6.pth', **half)
    log = next((tmp_path / 'half').glob('*/*.log')).read_text()
    assert 'iteration 6 is not in epoch 2 of 8 iterations each: it continues with a complete' in log
    assert log.count('Epoch(train)') == 8


def test_another_sampler(train, tmp_path):
    options = {'train_dataloader.sampler.type': 'DefaultSampler'}
    whole = train(None, **options)
    train(None, 'resumed', whole(6), **options)
    log = next((tmp_path / 'resumed').glob('*/*.log')).read_text()
    assert 'DefaultSampler begins its epoch again, although 2 iterations of it are done' in log


def test_processes_that_have_resumed_differently(monkeypatch, images):
    monkeypatch.setattr(
        'mmdense.engine.hooks.exact_resume.all_gather_object', lambda place: [place, (1, 4)]
    )
    with pytest.raises(CheckpointError, match='from different checkpoints.*same work directory'):
        ExactResumeHook().before_train(SimpleNamespace(epoch=2, iter=8))


# ---------------------------------------------------------------- its parts


class Echo:
    """A transform whose views are the draws that it would make."""

    def __call__(self, results):
        draws = [np.random.rand(), torch.rand(()).item(), random.random()]
        return dict(path=results['img_path'], draws=draws)


def epoch(dataset, epoch=0, start=0, workers=0, seed=0):
    sampler = ResumableSampler(dataset, seed=seed)
    sampler.set_epoch(epoch)
    sampler.start_at(start)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list
    )
    assert len(loader) == len(dataset) // 2
    return [sample for batch in loader for sample in batch]


def test_an_image_is_drawn_by_its_number(images):
    dataset = UnlabeledDataset(data_root=images, pipeline=[Echo()])
    first = epoch(dataset)
    assert sorted(s['path'] for s in first) == [dataset[i]['path'] for i in range(16)]
    assert len({tuple(s['draws']) for s in first}) == 16
    assert epoch(dataset, workers=3) == epoch(dataset) == first
    assert epoch(dataset, start=6) == first[6:]
    for other in (epoch(dataset, epoch=1), epoch(dataset, seed=6)):
        assert [s['path'] for s in other] != [s['path'] for s in first]
        assert not {tuple(s['draws']) for s in other} & {tuple(s['draws']) for s in first}


def test_what_it_draws_disturbs_nobody(images):
    dataset = UnlabeledDataset(data_root=images, pipeline=[Echo()])
    number = next(iter(ResumableSampler(dataset, seed=5)))
    draws = []
    for interrupted in (False, True):
        seed_all(0)
        if interrupted:
            dataset[number]
        draws.append([np.random.rand(), torch.rand(()).item(), random.random()])
    assert draws[0] == draws[1] != dataset[number]['draws']


def test_start_at_is_for_one_epoch():
    sampler = ResumableSampler(range(10), seed=0)
    sampler.start_at(7)
    assert len(sampler) == 10 and len(list(sampler)) == 3
    assert sorted(sampler) == list(range(10))  # no numbers: a list does not take them


def test_seeds_are_unrelated():
    streams = set()
    for numbers in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**70,), (2**70 + 1,)]:
        with seeded(*numbers):
            streams.add((np.random.rand(), torch.rand(()).item(), random.random()))
    assert len({value for stream in streams for value in stream}) == 21
