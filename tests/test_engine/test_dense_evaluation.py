# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The frozen features are evaluated while they are trained, and nothing else changes."""

import json
import re
import struct
import time

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image
from runs import tiny_config
from tiny_algorithms import each_algorithm, first_where, tiny_form

from mmdense.engine import DenseEvaluationHook
from mmdense.engine.events import read_events
from mmdense.utils.errors import DataError, InputError

NAMES = [f'eval/{method}_{key}' for method in ('knn', 'linear') for key in ('mIoU', 'aAcc')]


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """Pictures of two colours, which are the classes."""
    root = tmp_path_factory.mktemp('labelled')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('img_dir', 'ann_dir'):
            (root / kind / split).mkdir(parents=True)
        for i in range(6):
            labels = rng.integers(0, 2, (2, 2)).repeat(64, 0).repeat(64, 1).astype(np.uint8)
            Image.fromarray(labels).save(root / f'ann_dir/{split}/{split}{i}.png')
            Image.fromarray(labels * 200).convert('RGB').save(
                root / f'img_dir/{split}/{split}{i}.jpg'
            )
    return dict(type='LabelledMaps', data_root=str(root), num_classes=2)


@pytest.fixture
def train(images, tmp_path):
    """Two epochs of four steps by a recipe, tiny: the runner, when it is done, and its log."""

    def call(algorithm=None, name='work', **options):
        cfg = tiny_config(
            images,
            tmp_path / name,
            algorithm,
            **{
                'randomness.seed': 0,
                'default_hooks.health': None,
                **options,
            },
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner, next((tmp_path / name).glob('*/*.log')).read_text()

    return call


def scalars(path):
    """Step → the numbers that were logged there."""
    found = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        if any(name.startswith('eval/') for name in values):
            found[values['step']] = values
    return found


def test_every_backend_gets_the_numbers(train, labelled, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hook = dict(type='DenseEvaluationHook', data=labelled, interval=1)
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    _, log = train(
        **{'default_hooks.evaluation': hook, 'visualizer.vis_backends': backends},
    )
    (path,) = tmp_path.glob('work/*/vis_data/scalars.json')
    local = scalars(path)
    assert sorted(local) == [0, 4, 8]
    (folder,) = tmp_path.glob('work/*/vis_data/events.out.*')
    events = EventAccumulator(str(folder))
    events.Reload()
    for name in NAMES:
        series = events.Scalars(name)
        assert [event.step for event in series] == [0, 4, 8]
        for event in series:
            assert event.value == pytest.approx(local[event.step][name], rel=1e-6)
            assert 0 <= event.value <= 100
    # where the losses of that iteration are
    assert {event.step for event in events.Scalars('loss')} >= {4, 8}
    lines = re.findall(r'Features after (\d+) iterations: knn_mIoU ([\d.]+), .* s\)', log)
    assert [(int(step), float(value)) for step, value in lines] == [
        (step, local[step]['eval/knn_mIoU']) for step in (0, 4, 8)
    ]
    found = read_events(next(tmp_path.glob('work/*/events.jsonl')).parent)
    found = [event for event in found if event['kind'] == 'evaluation']
    assert [event['iteration'] for event in found] == [0, 4, 8]
    for event in found:
        for name, value in event['values'].items():
            assert value == local[event['iteration']][f'eval/{name}']
    saved = torch.load(tmp_path / 'work/iter_8.pth', weights_only=False)
    history = saved['message_hub']['log_scalars']['eval/linear_mIoU'].data[0]
    # that of the last iteration comes before the evaluation
    assert history.tolist() == [local[step]['eval/linear_mIoU'] for step in (0, 4)]


def wandb_records(path):
    """Of a run's file, whose format is that of LevelDB's log: blocks of 32 KiB with pieces of
    records, of which each begins with a checksum, its length and its kind."""
    content, at, record = path.read_bytes(), 7, b''
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack('<HB', content[at + 4 : at + 7])
        if at + 7 + length > len(content):  # is being written
            return
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its end
            yield record
            record = b''


def test_weights_and_biases(train, labelled, tmp_path, monkeypatch, require):
    """Written offline, and read back."""
    require('wandb')
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv('WANDB_MODE', 'offline')
    hook = dict(type='DenseEvaluationHook', data=labelled, interval=1)
    backends = [dict(type='LocalVisBackend'), dict(type='WandbVisBackend')]
    train(**{'default_hooks.evaluation': hook, 'visualizer.vis_backends': backends})
    wandb.finish()
    (path,) = tmp_path.glob('work/**/run-*.wandb')
    end = time.monotonic() + 60
    records = []
    while not records or records[-1].WhichOneof('record_type') != 'exit':
        assert time.monotonic() < end, 'a program of W&B writes, which did not end in a minute'
        time.sleep(0.2)
        records = [wandb_internal_pb2.Record.FromString(r) for r in wandb_records(path)]
    found = {}
    for record in records:
        items = {
            item.key or '/'.join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if NAMES[0] in items:
            found[items['iter']] = items
    (local,) = tmp_path.glob('work/*/vis_data/scalars.json')
    local = scalars(local)
    assert sorted(found) == [0, 4, 8]
    assert all(found[step][name] == local[step][name] for step in found for name in NAMES)


@each_algorithm(quick=[tiny_form().algorithm])
def test_training_is_the_same_to_the_last_bit(algorithm, train, labelled):
    """Even without the hook that seeds each step."""
    hook = dict(type='DenseEvaluationHook', data=labelled, interval=2, by_epoch=False)
    without = {'default_hooks.exact_resume': None}
    runner, log = train(algorithm, 'with', **{'default_hooks.evaluation': hook}, **without)
    assert re.findall(r'Features after (\d+)', log) == list('02468')
    after = torch.get_rng_state()
    plain, _ = train(algorithm, 'without', **without)
    assert torch.equal(after, torch.get_rng_state())
    left, right = runner.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
    for (name, a), (_, b) in zip(runner.model.named_modules(), plain.model.named_modules()):
        assert a.training == b.training and len(a._forward_hooks) == len(b._forward_hooks), name
    for a, b in zip(runner.model.parameters(), plain.model.parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize('detector', [False, True])
def test_it_evaluates_the_product(detector, train, labelled):
    """A product that is not the backbone, such as a teacher's, or the backbone of a detector, is
    evaluated as tools/evaluate_features.py would evaluate it."""
    from mmdense.evaluation import LabelledMaps, evaluate_features

    hook = dict(type='DenseEvaluationHook', data=labelled, interval=5)
    others = ('backbone',) if detector else ('backbone', 'detector')
    algorithm = first_where(lambda kind: kind.product not in others)
    runner, log = train(algorithm, **{'default_hooks.evaluation': hook})
    assert re.findall(r'Features after (\d+)', log) == ['0', '8']
    data = LabelledMaps(**{k: v for k, v in labelled.items() if k != 'type'})
    model = runner.model
    product = model.get_product().backbone if detector else model.get_product()
    found = evaluate_features(product, model.data_preprocessor, data)
    hub = runner.message_hub
    assert {f'eval/{k}': v for k, v in found.items()} == {
        name: hub.get_scalar(name).current() for name in NAMES
    }


def test_a_resumed_run_does_not_begin_with_it(train, labelled, tmp_path):
    hook = dict(type='DenseEvaluationHook', data=labelled, interval=1, methods=['knn'])
    options = {'default_hooks.evaluation': hook}
    train(**options)
    _, log = train(
        name='again', resume=True, load_from=str(tmp_path / 'work/iter_6.pth'), **options
    )
    assert re.findall(r'Features after (\d+)', log) == ['8']


def test_what_goes_wrong_later_is_a_line(train, labelled, monkeypatch, tmp_path):
    import mmdense.engine.hooks.dense_evaluation as module

    calls = []

    def fails(*_, **__):
        calls.append(1)
        if len(calls) in fails_at:
            raise InputError('features of stage 5 are not finite')
        return dict(knn_mIoU=1.0)

    monkeypatch.setattr(module, 'evaluate_features', fails)
    hook = dict(type='DenseEvaluationHook', data=labelled, interval=1)
    fails_at = [2]
    _, log = train(**{'default_hooks.evaluation': hook})
    assert re.findall(r'ERROR .* after (\d+) iterations: features of stage 5', log) == ['4']
    assert re.findall(r'Features after (\d+)', log) == ['0', '8']
    found = read_events(next(tmp_path.glob('work/*/events.jsonl')).parent)
    failed = [event for event in found if event['kind'] == 'evaluation_failed']
    assert [(event['iteration'], event['level']) for event in failed] == [(4, 'ERROR')]
    fails_at, calls[:] = [1], []
    with pytest.raises(InputError, match='not finite'):
        train(name='at_once', **{'default_hooks.evaluation': hook})


def test_bad_arguments_say_so(labelled, mmdense_scope):
    with pytest.raises(InputError, match='interval must be a whole number of at least 1'):
        DenseEvaluationHook(labelled, interval=0)
    with pytest.raises(InputError, match='methods must be some of knn, linear'):
        DenseEvaluationHook(labelled, methods=['tsne'])
    with pytest.raises(DataError, match='there is no folder nowhere/img_dir/train'):
        DenseEvaluationHook(dict(labelled, data_root='nowhere'))
