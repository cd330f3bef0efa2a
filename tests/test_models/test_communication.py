# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What processes exchange in a step: every call, and its bytes (docs/scaling.md)."""

import re
import sys
from pathlib import Path

import pytest
from mmengine.model import MMDistributedDataParallel
from tiny_algorithms import (
    NORM,
    algorithms,
    algorithms_of,
    each_algorithm,
    joined_batch,
    main,
    tiny_form,
    tiny_model,
    tiny_model_config,
)
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

# also in the processes that these tests start
sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import exchange
from exchange import Record

from mmdense.utils import model_index


def one_step(algorithm):
    """The second step's calls (in the first, DistributedDataParallel arranges its buckets); and
    the gradient's bytes; and what the algorithm records."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model = tiny_model(algorithm)
    views, samples = joined_batch(algorithm, number=3 * world)
    mine = slice(3 * rank, 3 * rank + 3)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapped.register_comm_hook(None, allreduce_hook)
    watch = tiny_form(algorithm).watch
    seen = watch() if watch else []
    for _ in range(2):
        with Record() as record:
            losses = wrapped([v[mine] for v in views], samples[mine], mode='loss')
            sum(losses.values()).backward()
    gradient = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    return list(record), gradient, seen


def all_algorithms(rank):
    return [one_step(algorithm) for algorithm in algorithms(labelled=True)]


@pytest.mark.parametrize('number', [2, 4])
def test_calls_and_bytes(in_processes, number):
    """Nothing grows with the processes but what each receives of an all-gather."""
    image, patches = 3 * 96 * 96, 3 * 32 * 288
    for outcome in in_processes(all_algorithms, number=number):
        for algorithm, (calls, gradient, seen) in zip(algorithms(labelled=True), outcome):
            expected = tiny_form(algorithm).calls(image, patches, seen)
            calls, buckets = calls[: len(expected)], calls[len(expected) :]
            assert [tuple(call) for call in calls] == expected
            assert {name for name, _ in buckets} == {'all_reduce'}
            assert sum(size for _, size in buckets) == gradient


def count_tiny(algorithm, world, norm=NORM):
    """Return what the first of many processes exchanges with two images."""
    config = tiny_model_config(algorithm, norm)
    if 'queue_len' in config:
        config['queue_len'] = 2 * exchange.WORLDS[-1]  # all keys of a batch
    with exchange.processes(world):
        return exchange.count_step(config, joined_batch(algorithm, number=2))


@each_algorithm(variants=True)
def test_flat_in_the_number_of_processes(algorithm):
    """What a process gives is the same on 8 and on 512 GPUs but for what the algorithm declares;
    what it receives grows by keys and slots alone, which are gathered."""
    few, many = (count_tiny(algorithm, world) for world in (8, 512))
    grows = tiny_form(algorithm).grows
    growing = [[call for call in c.calls if call[0] in grows] for c in (few, many)]
    assert [(name, 64 * size) for name, size in growing[0]] == [tuple(c) for c in growing[1]]
    few, many = (
        c._replace(calls=[call for call in c.calls if call[0] not in grows]) for c in (few, many)
    )
    assert few == many
    model = tiny_model(algorithm)
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert exchange.sum_bytes(many.gradients) == trained
    gathered = [call for call in many.calls if call[0].startswith('all_gather')]
    growth = exchange.received(many.calls, 512) - exchange.received(many.calls, 8)
    assert growth == (512 - 8) * exchange.sum_bytes(gathered)
    # an all-gather of images would be 110 KB each
    assert exchange.sum_bytes(gathered) < 4000


def test_synchronised_norms_are_counted():
    """Each norm of each trained view has two calls, of statistics forward and of sums backward;
    without gradients it has one."""
    algorithm = next(a for a in algorithms_of('siamese') if tiny_form(a).passes is None)
    few = count_tiny(algorithm, 8, norm=dict(type='SyncBN'))
    names = [name for name, _ in few.sync_bn]
    assert names == ['all_gather', 'all_reduce'] * (len(names) // 2) and len(names) > 80
    assert few.sync_bn[0] == ('all_gather', 4 * (2 * 8 + 1))
    assert few.sync_bn[1] == ('all_reduce', 4 * 2 * 8)


@pytest.mark.slow
def test_the_table_of_the_docs(monkeypatch, capsys):
    """Every number is as counted; how many slots there are depends on rounding."""
    monkeypatch.setattr(sys, 'argv', ['exchange.py'])
    exchange.main()
    rows = re.findall(r'^\| \w+ \|.*', capsys.readouterr().out, re.M)
    text = exchange.DOCUMENT.read_text(encoding='utf-8').split(
        '<!-- table: by benchmarks/exchange.py'
    )[1]
    written = re.findall(r'^\| \w+ \|.*', text.split('<!-- end')[0], re.M)
    assert len(rows) == len(written) == len(model_index.methods())
    for row, other in zip(rows, written):
        assert re.sub(r'[\d.]+', '', row) == re.sub(r'[\d.]+', '', other)
        ours, theirs = ([float(n) for n in re.findall(r'[\d.]+', r)] for r in (row, other))
        assert ours == pytest.approx(theirs, rel=0.1)


def test_one_process_exchanges_nothing():
    for algorithm in algorithms(labelled=True):
        model, batch = tiny_model(algorithm), joined_batch(algorithm, number=2)
        with Record() as record:
            sum(model(*batch, mode='loss').values()).backward()
        assert not record


if __name__ == '__main__':
    main(globals())
