# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""What processes exchange in a step: every call, and its bytes (docs/scaling.md)."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from tiny import ALGORITHMS, joined_batch, main, tiny_model
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
    the gradient's bytes; and how many slots were kept."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model = tiny_model(algorithm)
    views, samples = joined_batch(algorithm, number=3 * world)
    mine = slice(3 * rank, 3 * rank + 3)
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    wrapped.register_comm_hook(None, allreduce_hook)
    slots = []
    if algorithm == 'SlotCon':
        from mmdense.models.heads import slot_contrast_head

        gather = slot_contrast_head.gather_rows
        slot_contrast_head.gather_rows = lambda rows, counts: (
            slots.append(counts) or gather(rows, counts)
        )
    for _ in range(2):
        with Record() as record:
            losses = wrapped([v[mine] for v in views], samples[mine], mode='loss')
            sum(losses.values()).backward()
    gradient = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    return list(record), gradient, slots[-1:]


def all_algorithms(rank):
    return [one_step(algorithm) for algorithm in ALGORITHMS]


@pytest.mark.parametrize('number', [2, 4])
def test_calls_and_bytes(in_processes, number):
    """Nothing grows with the processes but what each receives of an all-gather."""
    image, grid, dim, patches = 3 * 96 * 96, 9, 8, 3 * 32 * 288
    keys = grid * 64 + dim + dim * grid + dim  # DenseCL's map, key, dense keys, their mean
    for outcome in in_processes(all_algorithms, number):
        for algorithm, (calls, gradient, slots) in zip(ALGORITHMS, outcome):
            expected = dict(
                # images to be encoded elsewhere, and back; both queues' keys
                DenseCL=[
                    ('all_to_all_single', 3 * image * 4),
                    ('all_to_all_single', 3 * keys * 4),
                    ('all_gather', 3 * 2 * dim * 4),
                ],
                # the same with patches; all eight queues' keys
                DetCo=[
                    ('all_to_all_single', 3 * (image + patches) * 4),
                    ('all_to_all_single', 3 * 8 * dim * 4),
                    ('all_gather', 3 * 8 * dim * 4),
                ],
                PixPro=[],
                # the center; two numbers in each direction; the kept slots of both
                SlotCon=[
                    ('all_reduce', 12 * 4),
                    ('all_gather', 4 * 8),
                    ('all_gather', max(slots[0]) * dim * 4 if slots else None),
                ],
            )[algorithm]
            assert [tuple(call) for call in calls] == [*expected, ('all_reduce', gradient)]


def test_one_process_exchanges_nothing():
    for algorithm in ALGORITHMS:
        model, batch = tiny_model(algorithm), joined_batch(algorithm, number=2)
        with Record() as record:
            sum(model(*batch, mode='loss').values()).backward()
        assert not record


if __name__ == '__main__':
    main(globals())
