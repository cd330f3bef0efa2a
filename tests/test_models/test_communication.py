# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What processes exchange in a step: every call, and its bytes (docs/scaling.md)."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from tiny_algorithms import algorithms, joined_batch, main, tiny_form, tiny_model
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

CALLS = (
    *('all_gather', 'all_gather_into_tensor', 'all_gather_object', 'all_reduce', 'all_to_all'),
    *('all_to_all_single', 'barrier', 'broadcast', 'broadcast_object_list', 'gather', 'reduce'),
    *('reduce_scatter', 'reduce_scatter_tensor', 'scatter', 'send', 'recv', 'isend', 'irecv'),
)
# where a call takes what a process has to give
GIVEN = dict(all_gather=1, all_gather_into_tensor=1, all_to_all_single=1)


class Record(list):
    """(call, bytes that a process gives) of everything within."""

    def __enter__(self):
        self.originals = {name: getattr(distributed, name) for name in CALLS}
        for name in CALLS:
            setattr(distributed, name, self.wrap(name))
        return self

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(distributed, name, original)

    def wrap(self, name):
        def call(*args, **kwargs):
            given = args[GIVEN.get(name, 0)] if args else None
            number = given.numel() * given.element_size() if torch.is_tensor(given) else None
            self.append((name, number))
            return self.originals[name](*args, **kwargs)

        return call


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
    return [one_step(algorithm) for algorithm in algorithms()]


@pytest.mark.parametrize('number', [2, 4])
def test_calls_and_bytes(in_processes, number):
    """Nothing grows with the processes but what each receives of an all-gather."""
    image, patches = 3 * 96 * 96, 3 * 32 * 288
    for outcome in in_processes(all_algorithms, number=number):
        for algorithm, (calls, gradient, seen) in zip(algorithms(), outcome):
            expected = tiny_form(algorithm).calls(image, patches, seen)
            assert [tuple(call) for call in calls] == [*expected, ('all_reduce', gradient)]


def test_one_process_exchanges_nothing():
    for algorithm in algorithms():
        model, batch = tiny_model(algorithm), joined_batch(algorithm, number=2)
        with Record() as record:
            sum(model(*batch, mode='loss').values()).backward()
        assert not record


if __name__ == '__main__':
    main(globals())
