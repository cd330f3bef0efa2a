# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Two processes over gloo, beside one with the joined batch."""

import os
import sys

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DefaultScope
from torch import distributed, nn

from mmdense.models.utils import KeyQueue, gather_rows, shuffled_forward

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


MLP = dict(type='ProjectionMLP', hid_channels=16, out_channels=8)
# There is no synchronised BatchNorm on the CPU: a norm that does not look at other images.
NORM = dict(type='GN', num_groups=4)


def tiny_model(algorithm, norm=NORM):
    """A tiny model, without BatchNorm unless asked for, the same in every process."""
    from mmdense.registry import MODELS

    mlp = dict(MLP, norm_cfg=norm)
    backbone = dict(type='mmpretrain.ResNet', depth=18, norm_cfg=norm)
    neck = dict(mlp, in_channels=512)
    if algorithm == 'DetCo':
        backbone['out_indices'] = (0, 1, 2, 3)
        neck = dict(type='DetCoNeck', out_channels=8)
        parts = dict(queue_len=13, feat_dim=8, head=dict(type='InfoNCEHead'))
    elif algorithm == 'PixPro':
        parts = dict(
            total_steps=10,
            head=dict(type='PixProHead', in_channels=8),
            instance_neck=dict(mlp, in_channels=512),
            instance_head=dict(type='InstanceConsistencyHead', predictor=dict(mlp, in_channels=8)),
        )
    elif algorithm == 'PixContrast':
        algorithm, parts = 'PixPro', dict(total_steps=10, head=dict(type='PixContrastHead'))
    else:
        predictor = dict(mlp, in_channels=8, dense=False, num_layers=3)
        parts = dict(
            total_steps=10,
            num_prototypes=12,
            head=dict(type='SlotContrastHead', predictor=predictor),
        )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(dict(type=algorithm, backbone=backbone, neck=neck, **parts))
    model.init_weights()
    return model


def joined_batch(algorithm):
    """Two views of six images, with boxes, and for DetCo their patches. The
    first views hardly overlap and the others do, so that processes have
    differently many positives."""
    from mmpretrain.structures import DataSample

    rng = torch.Generator().manual_seed(1)
    views = list(torch.randn(2, 6, 3, 96, 96, generator=rng))
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8], [0.9, 0.2, 0.3, 0.9]]).repeat(6, 1, 1)
    boxes[:2, 0] = torch.tensor([0.0, 0.0, 0.2, 0.3])
    boxes += 0.02 * torch.rand(6, 2, 4, generator=rng)
    if algorithm == 'DetCo':
        views += list(torch.randn(2, 6, 3, 32, 288, generator=rng))
    return views, [DataSample(metainfo=dict(view_boxes=box)) for box in boxes]


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


def half_batch(rank, algorithm):
    views, samples = joined_batch(algorithm)
    mine = slice(3 * rank, 3 * rank + 3)
    return [v[mine] for v in views], samples[mine]


def half(rank, algorithm):
    return steps(tiny_model(algorithm), *half_batch(rank, algorithm))


def half_pixpro(rank):
    return half(rank, 'PixPro')


def half_pixcontrast(rank):
    return half(rank, 'PixContrast')


def half_slotcon(rank):
    return half(rank, 'SlotCon')


def half_detco(rank):
    return half(rank, 'DetCo')


def shuffle_two(rank):
    """Two inputs are shuffled alike: row n of one always meets row n of the other."""
    met = []

    def encode(x, y):
        met.extend((y.flatten(1)[:, 0] - x[:, 0]).tolist())
        return x, y.sum((1, 2))

    x = torch.arange(6.0).reshape(6, 1) + 100 * rank
    y = (x + 1000).view(6, 1, 1).expand(-1, 2, 3).contiguous()
    out, total = shuffled_forward(encode, x, y)
    return torch.equal(out, x) and torch.equal(total, 6 * (x[:, 0] + 1000)), met


def few_positives(rank):
    """SlotCon with BatchNorm where a process has none or one positive slot, or none has any."""
    from mmdense.models.heads import slot_contrast_head

    find, outcome = slot_contrast_head.kept_slots, []
    for case in ('none here', 'one here', 'none anywhere'):
        model = tiny_model('SlotCon', norm=dict(type='BN'))
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
        history, grads, _ = steps(model, *half_batch(rank, 'SlotCon'))
        finite = all(torch.isfinite(g).all() for g in grads.values())
        outcome.append((case, bool(finite), [h['loss_slot'] for h in history]))
    return outcome


def gather_unequal(rank):
    rows, first = gather_rows(torch.full((1 + 2 * rank, 2), float(rank)))
    empty, start = gather_rows(torch.ones(rank, 2))
    return rows.tolist(), first, empty.tolist(), start


def test_rows_of_unequal_number(in_two_processes):
    (rows, first, empty, start), (same, second, _, start_2) = in_two_processes(gather_unequal)
    assert rows == same == [[0, 0], [1, 1], [1, 1], [1, 1]]
    assert (first, second, start, start_2) == (0, 1, 0, 0) and empty == [[1, 1]]


@pytest.mark.parametrize(
    'function, algorithm',
    [
        (half_pixpro, 'PixPro'),
        (half_pixcontrast, 'PixContrast'),
        (half_slotcon, 'SlotCon'),
        (half_detco, 'DetCo'),
    ],
)
def test_two_processes_equal_one_with_the_joined_batch(in_two_processes, function, algorithm):
    """Losses, gradients after DistributedDataParallel's mean, center and queues."""
    one, grads, state = steps(tiny_model(algorithm), *joined_batch(algorithm))
    (first, grads_2, state_2), (second, same_grads, same_state) = in_two_processes(function)
    for joined, a, b in zip(one, first, second):
        for name, value in joined.items():
            assert (a[name] + b[name]) / 2 == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert first[0] != second[0]
    for name, grad in grads.items():
        assert torch.equal(grads_2[name], same_grads[name])
        torch.testing.assert_close(grads_2[name], grad, rtol=1e-5, atol=1e-5, msg=name)
    for name, value in state.items():
        torch.testing.assert_close(state_2[name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(state_2[name], same_state[name]), name


def test_processes_with_few_positives(in_two_processes):
    """None waits for the other, and nothing is NaN."""
    for rank, outcome in enumerate(in_two_processes(few_positives)):
        assert [case for case, _, _ in outcome] == ['none here', 'one here', 'none anywhere']
        for case, finite, losses in outcome:
            assert finite and all(loss >= 0 for loss in losses), (case, losses)
            none = case == 'none anywhere' or (case == 'none here' and rank == 0)
            assert all((loss == 0) == none for loss in losses), (case, losses)


def test_queue_gathers_in_order_of_process(in_two_processes):
    first, second = in_two_processes(enqueue)
    assert first == second
    keys, ptr, filled = first
    # eight keys into seven places: the last one wrapped around
    assert keys[0] == [12, 1, 2, 2, 11, 11, 12] and (ptr, filled) == (1, 7)


def test_two_inputs_are_shuffled_alike(in_two_processes):
    for in_order, met in in_two_processes(shuffle_two):
        assert in_order and met == [1000] * 6


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
