# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Two processes over gloo."""

import os
import sys

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DefaultScope
from torch import distributed, nn

from mmdense.models.utils import KeyQueue, shuffled_forward

WORLD = 2


@pytest.fixture
def in_two_processes(run, free_port, tmp_path):
    """Runs a function of this file in each process; what each returned."""

    def call(function):
        launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', WORLD]
        done = run(*launch, '--master_port', free_port, __file__, function.__name__, tmp_path)
        assert done.returncode == 0, done.stdout
        return [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(WORLD)]

    return call


def enqueue(rank):
    queue = KeyQueue(2, 7)
    queue.keys.zero_()
    for step in range(2):
        queue.enqueue(torch.full((2, 2), 10.0 * step + rank + 1))
    return queue.keys.tolist(), int(queue.ptr), int(queue.filled)


def shuffle(rank):
    """Rows come back in order, after BatchNorm saw rows of both processes."""
    seen = []

    def encode(x):
        seen.extend(x[:, 0].tolist())
        return x, 2 * x

    x = torch.arange(6.0).reshape(6, 1) + 100 * rank
    out, double = shuffled_forward(encode, x)
    return torch.equal(out, x) and torch.equal(double, 2 * x), sorted(seen)


def pretrain(rank):
    """Three steps of DenseCL under DistributedDataParallel."""
    from mmdense.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(
            dict(
                type='DenseCL',
                queue_len=13,
                feat_dim=8,
                backbone=dict(type='mmpretrain.ResNet', depth=18),
                neck=dict(type='DenseCLNeck', in_channels=512, hid_channels=16, out_channels=8),
                head=dict(type='InfoNCEHead'),
            )
        )
    for value in model.state_dict().values():
        distributed.broadcast(value, src=0)  # as MMEngine's runner does
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        losses = wrapped([torch.randn(2, 3, 64, 64) for _ in range(2)], mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    state = model.state_dict()
    same = ('queue', 'encoder_k.module.0.conv1.weight', 'backbone.conv1', 'neck', 'encoder_k.steps')
    return {k: v for k, v in state.items() if k.startswith(same)}


def test_queue_gathers_in_order_of_process(in_two_processes):
    first, second = in_two_processes(enqueue)
    assert first == second
    keys, ptr, filled = first
    # eight keys into seven places: the last one wrapped around
    assert keys[0] == [12, 1, 2, 2, 11, 11, 12] and (ptr, filled) == (1, 7)


def test_shuffled_forward(in_two_processes):
    results = in_two_processes(shuffle)
    assert all(in_order for in_order, _ in results)
    (_, first), (_, second) = results
    everything = [*range(6), *range(100, 106)]
    assert sorted(first + second) == everything
    assert len(first) == len(second) == 6


def test_processes_stay_equal(in_two_processes):
    first, second = in_two_processes(pretrain)
    assert first.keys() == second.keys() and len(first) > 8
    for key, value in first.items():
        assert (value == second[key]).all(), key
    assert first['queue.filled'] == 12 and first['queue2.ptr'] == 12


def test_one_process_is_not_shuffled():
    network = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    (out,) = shuffled_forward(lambda y: (network(y),), x)
    assert torch.equal(out, network(x)) and not out.requires_grad


if __name__ == '__main__':
    name, folder = sys.argv[1:]
    distributed.init_process_group('gloo')
    torch.set_num_threads(1)
    torch.manual_seed(distributed.get_rank())
    result = globals()[name](distributed.get_rank())
    torch.save(result, f'{folder}/{distributed.get_rank()}.pth')
    os._exit(0)  # PyTorch 2.1 can hang while it takes gloo down
