# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdense.models.layers import KeyQueue
from mmdense.utils.errors import InputError


def test_starts_with_random_unit_keys():
    queue = KeyQueue(16, 50)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(50))
    assert int(queue.filled) == 0 and int(queue.ptr) == 0


@given(length=st.integers(1, 40), batches=st.lists(st.integers(1, 40), max_size=12))
@settings(max_examples=100, deadline=None)
def test_holds_the_last_keys(length, batches):
    """Any queue length with any sequence of batch sizes: first in, first out."""
    queue = KeyQueue(2, length)
    start = queue.keys.clone()
    seen = []
    for size in batches:
        if size > length:
            continue
        keys = torch.arange(len(seen), len(seen) + size).float().repeat(2, 1).t() + 100
        queue.enqueue(keys)
        seen += keys[:, 0].tolist()
    assert int(queue.filled) == min(len(seen), length)
    assert int(queue.ptr) == len(seen) % length
    kept = set(seen[-length:])
    assert kept <= set(queue.keys[0].tolist())
    untouched = queue.keys[0][queue.keys[0] < 99]
    assert len(untouched) == max(length - len(seen), 0)
    assert set(untouched.tolist()) <= set(start[0].tolist())


def test_a_batch_larger_than_the_queue_says_so():
    with pytest.raises(InputError, match='queue_len=4 is smaller than the 5 keys'):
        KeyQueue(8, 4).enqueue(torch.zeros(5, 8))


@pytest.mark.parametrize('arguments', [(0, 8), (8, -1), (8, 2.5), ('8', 8), (8, True)])
def test_sizes_are_checked(arguments):
    with pytest.raises(InputError, match='must be a whole number of at least 1'):
        KeyQueue(*arguments)


def test_state_survives():
    queue = KeyQueue(4, 10)
    queue.enqueue(torch.randn(7, 4))
    other = KeyQueue(4, 10)
    other.load_state_dict(queue.state_dict())
    for key, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    for a in (queue, other):
        a.enqueue(torch.ones(6, 4))
    assert torch.equal(queue.keys, other.keys) and int(other.ptr) == 3 and int(other.filled) == 10


def filled_queue(length, keys):
    queue = KeyQueue(2, length)
    for i in range(keys):
        queue.enqueue(torch.full((1, 2), 100.0 + i))
    return queue


@pytest.mark.parametrize('there', [3, 8, 13])
@pytest.mark.parametrize('here', [5, 8, 20])
def test_a_queue_of_another_length_keeps_its_newest_keys(here, there):
    """And does not count the rest as filled."""
    saved = filled_queue(8, there)
    queue = KeyQueue(2, here)
    queue.load_state_dict(saved.state_dict())
    kept = min(here, there, 8)
    assert int(queue.filled) == kept
    newest = [100.0 + i for i in range(there - kept, there)]
    assert sorted(k for k in queue.keys[0].tolist() if k >= 99) == newest
    queue.enqueue(torch.full((1, 2), 500.0))  # takes the place of the oldest, or a random one
    keys = [k for k in queue.keys[0].tolist() if k >= 99]
    assert sorted(keys) == ([*newest, 500.0] if kept < here else [*newest[1:], 500.0])


def test_wrong_keys_say_so():
    with pytest.raises(InputError, match='feat_dim=8, but keys are'):
        KeyQueue(8, 4).enqueue(torch.zeros(2, 7))
