# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from torch.nn.functional import normalize

from mmdense.models.utils import unit_vectors


@pytest.mark.parametrize('shape', [(3, 8), (3, 8, 5), (2, 8, 3, 4)])
def test_equals_normalize(shape):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape)
    ours, theirs = unit_vectors(x), normalize(x, dim=1)
    torch.testing.assert_close(ours, theirs)
    (grad,), (expected,) = (torch.autograd.grad((u * weight).sum(), x) for u in (ours, theirs))
    torch.testing.assert_close(grad, expected)


def test_gradcheck():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_vectors, x)


def test_a_zero_vector_stays_zero():
    x = torch.zeros(1, 4, requires_grad=True)
    unit = unit_vectors(x)
    assert (unit == 0).all()
    (grad,) = torch.autograd.grad(unit.sum(), x)
    assert torch.isfinite(grad).all()


def test_keeps_the_result_and_not_the_input():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        unit = unit_vectors(torch.randn(3, 8, 5, requires_grad=True))
    large = [x for x in kept if x.numel() == unit.numel()]
    assert len(large) == 1 and torch.equal(large[0], unit)
