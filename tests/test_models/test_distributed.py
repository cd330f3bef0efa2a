# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Two and four processes over gloo, beside one with the joined batch."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from tiny_algorithms import (
    algorithms,
    algorithms_of,
    each_algorithm,
    joined_batch,
    main,
    one_a_family,
    tiny_model,
)
from torch import distributed, nn

from mmdense.models.layers import KeyQueue
from mmdense.models.utils import gather_rows, shuffled_forward


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
    out, double = shuffled_forward(encode, x, seed=1)
    return torch.equal(out, x) and torch.equal(double, 2 * x), sorted(seen)


def pretrain(rank):
    """Take three steps under DistributedDataParallel."""
    model = tiny_model(norm=dict(type='BN'))
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


def steps(model, views, samples):
    """Two steps: losses, gradients of the first, and buffers after them."""
    call = model
    if distributed.is_initialized():
        call = MMDistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    history, grads = [], {}
    for _ in range(2):
        losses = call(views, samples, mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        history.append({k: v.item() for k, v in losses.items()})
        if not grads:
            grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
    # what else must agree: the center, the queues
    state = {k: v for k, v in model.state_dict().items() if k.startswith(('center', 'queue'))}
    return history, grads, state


def share_of_batch(rank, algorithm):
    views, samples = joined_batch(algorithm, number=3 * distributed.get_world_size())
    mine = slice(3 * rank, 3 * rank + 3)
    return [v[mine] for v in views], samples[mine]


def share(rank, *names):
    """Take the steps of several algorithms, each on a process's share of the batch."""
    return {name: steps(tiny_model(name), *share_of_batch(rank, name)) for name in names}


def shuffle_two(rank):
    """Two inputs are shuffled alike: row n of one always meets row n of the other."""
    met = []

    def encode(x, y):
        met.extend((y.flatten(1)[:, 0] - x[:, 0]).tolist())
        return x, y.sum((1, 2))

    x = torch.arange(6.0).reshape(6, 1) + 100 * rank
    y = (x + 1000).view(6, 1, 1).expand(-1, 2, 3).contiguous()
    out, total = shuffled_forward(encode, x, y, seed=1)
    return torch.equal(out, x) and torch.equal(total, 6 * (x[:, 0] + 1000)), met


def few_positives(rank):
    """Take steps with BatchNorm where a process has none or one positive slot, or none has any."""
    from mmdense.models.heads import slot_contrast_head

    (algorithm,) = algorithms_of('teacher')
    find, outcome = slot_contrast_head.kept_slots, []
    for case in ('none here', 'one here', 'none anywhere'):
        model = tiny_model(algorithm, norm=dict(type='BN'))
        calls = []

        def kept(scores, case=case, calls=calls):
            calls.append(None)
            if rank and case != 'none anywhere':
                return find(scores)
            mask = torch.zeros_like(find(scores))
            # the student's call comes first, the teacher's second
            mask[0, 0 if case == 'one here' else len(calls) % 2] = True
            return mask

        slot_contrast_head.kept_slots = kept
        history, grads, _ = steps(model, *share_of_batch(rank, algorithm))
        finite = all(torch.isfinite(g).all() for g in grads.values())
        outcome.append((case, bool(finite), [h['loss_slot'] for h in history]))
    return outcome


def gather_unequal(rank):
    rows = gather_rows(torch.full((1 + 2 * rank, 2), float(rank)), [1, 3])
    empty = gather_rows(torch.ones(rank, 2), [0, 1])
    return [part.tolist() for part in rows], [part.tolist() for part in empty]


def test_rows_of_unequal_number(in_processes):
    for rows, empty in in_processes(gather_unequal):
        assert rows == [[[0, 0]], [[1, 1], [1, 1], [1, 1]]]
        assert empty == [[], [[1, 1]]]


def shuffle_as_mmpretrain(rank):
    """Both formulations, given the same order: what is encoded where, and what comes back."""
    from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp

    x, y = torch.randn(5, 3, 2), torch.randn(5, 4)
    outcome = []
    for seed in range(3):
        seen = []

        def encode(x, y, seen=seen):
            seen.append((x, y))
            return x.mean(2) + x.mean(), torch.cat([y, x[:, :, 0]], dim=1) * y.std()

        ours = shuffled_forward(encode, x, y, seed=seed)
        torch.manual_seed(seed)  # the order that they draw
        rows, order = batch_shuffle_ddp(torch.cat([x.flatten(1), y], dim=1))
        theirs = encode(rows[:, :6].reshape(x.shape), rows[:, 6:])
        theirs = [batch_unshuffle_ddp(z, order) for z in theirs]
        pairs = [*zip(*seen), *zip(ours, theirs)]
        outcome.append(all(torch.equal(a, b) for a, b in pairs))
    return outcome


def test_shuffles_as_mmpretrain(in_processes):
    assert in_processes(shuffle_as_mmpretrain) == [[True] * 3] * 2


@pytest.fixture(scope='module')
def halves():
    """The steps of all algorithms in two processes, which start once."""
    found = {}

    def call(in_processes, algorithm):
        if not found:
            names = algorithms(variants=True, labelled=True)
            found.update(zip(names, zip(*(rank.values() for rank in in_processes(share, *names)))))
        return found[algorithm]

    return call


def compare_with_joined_batch(algorithm, ranks):
    """Losses, gradients after DistributedDataParallel's mean, center and queues."""
    joined = joined_batch(algorithm, number=3 * len(ranks))
    one, grads, state = steps(tiny_model(algorithm), *joined)
    histories, all_grads, states = zip(*ranks)
    for number, losses in enumerate(one):
        for name, value in losses.items():
            mean = sum(history[number][name] for history in histories) / len(ranks)
            assert mean == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert all(history[0] != histories[0][0] for history in histories[1:])
    for name, grad in grads.items():
        assert all(torch.equal(other[name], all_grads[0][name]) for other in all_grads)
        torch.testing.assert_close(all_grads[0][name], grad, rtol=1e-5, atol=1e-5, msg=name)
    for name, value in state.items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert all(torch.equal(other[name], states[0][name]) for other in states), name


@each_algorithm(variants=True, labelled=True)
def test_two_processes_equal_one_with_the_joined_batch(in_processes, halves, algorithm):
    compare_with_joined_batch(algorithm, halves(in_processes, algorithm))


@each_algorithm(quick=one_a_family(), variants=True, labelled=True)
def test_four_processes_equal_one_with_the_joined_batch(in_processes, algorithm):
    ranks = in_processes(share, algorithm, number=4)
    compare_with_joined_batch(algorithm, [rank[algorithm] for rank in ranks])


def test_processes_with_few_positives(in_processes):
    """None waits for the other, and nothing is NaN."""
    for rank, outcome in enumerate(in_processes(few_positives)):
        assert [case for case, _, _ in outcome] == ['none here', 'one here', 'none anywhere']
        for case, finite, losses in outcome:
            assert finite and all(loss >= 0 for loss in losses), (case, losses)
            none = case == 'none anywhere' or (case == 'none here' and rank == 0)
            assert all((loss == 0) == none for loss in losses), (case, losses)


def test_queue_gathers_in_order_of_process(in_processes):
    first, second = in_processes(enqueue)
    assert first == second
    keys, ptr, filled = first
    # eight keys into seven places: the last one wrapped around
    assert keys[0] == [12, 1, 2, 2, 11, 11, 12] and (ptr, filled) == (1, 7)


def test_two_inputs_are_shuffled_alike(in_processes):
    for in_order, met in in_processes(shuffle_two):
        assert in_order and met == [1000] * 6


def test_shuffled_forward(in_processes):
    results = in_processes(shuffle)
    assert all(in_order for in_order, _ in results)
    (_, first), (_, second) = results
    everything = [*range(6), *range(100, 106)]
    assert sorted(first + second) == everything
    assert len(first) == len(second) == 6


def test_processes_stay_equal(in_processes):
    first, second = in_processes(pretrain)
    assert first.keys() == second.keys() and len(first) > 8
    for key, value in first.items():
        assert (value == second[key]).all(), key
    assert first['queue.filled'] == 12 and first['queue2.ptr'] == 12


def test_one_process_is_not_shuffled():
    network = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    (out,) = shuffled_forward(lambda y: (network(y),), x, seed=1)
    assert torch.equal(out, network(x)) and not out.requires_grad


if __name__ == '__main__':
    main(globals())
