# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Losses of images as complete vectors: NT-Xent, the cosine distance, and Sinkhorn's codes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_algorithms import main
from torch.nn.functional import normalize

from mmdense.models.losses import cosine_distance, nt_xent, sinkhorn
from mmdense.utils.errors import InputError


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def read_golden(name):
    """Read a vector in a process that has no fixtures."""
    folder = os.environ.get('MMDENSE_GOLDEN') or Path(__file__).parents[1] / 'golden'
    with np.load(Path(folder) / f'{name}.npz') as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


def test_golden_nt_xent(golden):
    g = golden('simclr_ntxent')
    hidden = g['hidden'].requires_grad_()
    first, second = normalize(hidden, dim=1, eps=1e-6).chunk(2)
    loss = nt_xent(first, second, float(g['temperature']))
    close(loss, g['loss'])
    close(*torch.autograd.grad(loss, hidden), g['grad'])


def contrast_two(rank):
    """Return the loss of this process and the gradient of its shared weights."""
    g = read_golden('simclr_ntxent_two_processes')
    w = g['w'].requires_grad_()
    first, second = normalize(g['x'][rank] @ w, dim=1, eps=1e-6).chunk(2)
    loss = nt_xent(first, second, float(g['temperature']))
    (grad,) = torch.autograd.grad(loss, w)
    return loss.detach(), grad


def test_golden_nt_xent_of_two_processes(golden, in_processes):
    g = golden('simclr_ntxent_two_processes')
    losses, grads = zip(*in_processes(contrast_two))
    close(torch.stack(losses), g['losses'])
    close(sum(grads) / 2, g['grad_w'])  # the mean that DistributedDataParallel takes


def test_nt_xent_by_the_definition():
    first, second = normalize(torch.randn(2, 5, 7), dim=2)
    rows = torch.cat([first, second])
    logits = rows @ rows.t() / 0.3
    logits.fill_diagonal_(-torch.inf)
    target = (torch.arange(10) + 5) % 10
    expected = torch.nn.functional.cross_entropy(logits, target)
    close(nt_xent(first, second, 0.3), 2 * expected)
    with pytest.raises(InputError, match='nt_xent takes two matrices N×C'):
        nt_xent(first, second[:3])


def test_nt_xent_gradcheck():
    first, second = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nt_xent, (first, second, 0.5))


def test_golden_sinkhorn(golden):
    g = golden('swav_sinkhorn')
    close(sinkhorn(g['scores'], float(g['epsilon']), int(g['iterations'])), g['assignments'])


def assign_two(rank):
    g = read_golden('swav_sinkhorn_two_processes')
    return sinkhorn(g['scores'].chunk(2)[rank], float(g['epsilon']), int(g['iterations']))


def test_golden_sinkhorn_of_two_processes(golden, in_processes):
    g = golden('swav_sinkhorn_two_processes')
    close(torch.cat(in_processes(assign_two)), g['assignments'])


def assign_unused(rank):
    """A prototype that no sample of the first process scores: every process takes its part."""
    scores = torch.zeros(4, 3)
    scores[:, 0] = -10.0 if rank == 0 else 0.1
    alone = torch.zeros(4, 3)
    alone[:, 0] = -10.0
    return sinkhorn(scores), sinkhorn(alone)


def test_an_unused_prototype_hangs_nothing(in_processes):
    for used, unused in in_processes(assign_unused):
        assert torch.isfinite(used).all() and torch.isfinite(unused).all()
        close(unused.sum(1), torch.ones(4))
        assert (unused[:, 0] == 0).all()


def test_codes_share_the_prototypes():
    codes = sinkhorn(0.1 * torch.randn(64, 8), iterations=50)
    close(codes.sum(1), torch.ones(64))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 8.0), rtol=0.01, atol=0.01)
    assert not sinkhorn(torch.randn(4, 3, requires_grad=True)).requires_grad


def test_golden_cosine(golden):
    g = golden('byol_loss')
    predictions = [g[name].requires_grad_() for name in ('p1', 'p2')]
    loss = cosine_distance(predictions[0], g['z2']) + cosine_distance(predictions[1], g['z1'])
    close(loss, g['loss'])
    for grad, name in zip(torch.autograd.grad(loss, predictions), ('grad_p1', 'grad_p2')):
        close(grad, g[name], name)


@pytest.mark.parametrize('function', [nt_xent, cosine_distance])
def test_half_precision(function):
    """The losses are float32 under autocast."""
    a, b = normalize(torch.randn(2, 6, 9), dim=2)
    with torch.autocast('cpu', torch.bfloat16):
        loss = function(a.bfloat16(), b.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(function(a, b).item(), rel=0.02)


if __name__ == '__main__':
    main(globals())
