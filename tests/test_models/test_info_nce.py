# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.utils import digit_version
from torch.nn import functional as F

from mmdense.models.losses import info_nce
from mmdense.utils.errors import InputError

module = sys.modules['mmdense.models.losses.info_nce']


def plain_info_nce(query, key, queue, temperature):
    """The definition, with the whole M×K matrix."""
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], dim=1)
    return F.cross_entropy(logits / temperature, logits.new_zeros(len(query), dtype=torch.long))


def random_input(rows, channels, length, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        F.normalize(torch.randn(rows, channels, generator=generator), dim=1) * scale
        for _ in range(2)
    )
    queue = F.normalize(torch.randn(channels, length, generator=generator), dim=0)
    return query.requires_grad_(), key.requires_grad_(), queue


def close(ours, theirs):
    """To 1e-5, relative, or absolute below 1."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(
    rows=st.integers(1, 40),
    channels=st.integers(1, 9),
    length=st.integers(1, 70),
    block=st.tuples(st.integers(1, 50), st.integers(1, 80)),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(rows, channels, length, block, temperature, seed):
    """Whatever the blocks; loss and both gradients."""
    query, key, queue = random_input(rows, channels, length, seed)
    before, module._BLOCK = module._BLOCK, {'cpu': block}
    try:
        ours = info_nce(query, key, queue, temperature)
    finally:
        module._BLOCK = before
    theirs = plain_info_nce(query, key, queue, temperature)
    close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, [query, key]), torch.autograd.grad(theirs, [query, key])
    ):
        close(a, b)


def test_real_size_gradient():
    query, key, queue = random_input(98, 128, 65536)
    ours, theirs = info_nce(query, key, queue), plain_info_nce(query, key, queue, 0.2)
    close(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, query), torch.autograd.grad(theirs, query)
    # Entries are around 1e-3: compared at the scale of the gradient.
    close(a / b.abs().max(), b / b.abs().max())


# PyTorch 2.1 has no float16 autocast on the CPU.
HALF_TYPES = [torch.bfloat16] + [torch.float16] * (
    digit_version(torch.__version__) >= digit_version('2.3')
)


@pytest.mark.parametrize('dtype', HALF_TYPES)
def test_autocast_changes_nothing(dtype):
    """Under autocast it still computes in float32."""
    query, key, queue = random_input(32, 16, 300)
    expected = plain_info_nce(query, key, queue, 0.2)
    (grad,) = torch.autograd.grad(expected, query)
    with torch.autocast('cpu', dtype=dtype):
        ours = info_nce(query, key, queue)
    assert ours.dtype == torch.float32
    close(ours, expected)
    close(torch.autograd.grad(ours, query)[0], grad)


def test_half_precision_input_gets_gradients_of_its_type():
    query, key, queue = random_input(8, 16, 30)
    half = query.detach().bfloat16().requires_grad_()
    expected = plain_info_nce(half.float(), key, queue, 0.2)
    ours = info_nce(half, key, queue)
    close(ours, expected)
    (a,), (b,) = torch.autograd.grad(ours, half), torch.autograd.grad(expected, half)
    assert a.dtype == torch.bfloat16
    torch.testing.assert_close(a, b)


def test_large_logits_stay_finite():
    """No overflow where exp() of a logit alone would."""
    query, key, queue = random_input(6, 8, 50, scale=300.0)
    ours, theirs = info_nce(query, key, queue, 0.07), plain_info_nce(query, key, queue, 0.07)
    assert torch.isfinite(ours)
    close(ours, theirs)


def test_queue_may_change_before_backward():
    """The keys of a batch enter the queue between forward and backward."""
    query, key, queue = random_input(5, 8, 20)
    (expected,) = torch.autograd.grad(info_nce(query, key, queue), query)
    loss = info_nce(query, key, queue)
    queue.zero_()
    close(torch.autograd.grad(loss, query)[0], expected)


def test_never_holds_the_matrix():
    """The largest tensor made in forward and backward is a block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in inputs:
                self.numel = max(self.numel, out.numel())
            return out

    query, key, queue = random_input(1200, 16, 9000)
    inputs = {t.untyped_storage().data_ptr() for t in (query, key, queue)}
    with Largest() as largest:
        info_nce(query, key, queue).backward()
    rows, keys = module._BLOCK['cpu']
    assert largest.numel <= rows * keys < 1200 * 9000


@pytest.mark.parametrize(
    'shapes', [((4, 8), (5, 8), (8, 9)), ((4, 8), (4, 8), (9, 8)), ((8,), (8,), (8, 9))]
)
def test_wrong_shapes_say_so(shapes):
    with pytest.raises(InputError, match='query M×C, key M×C and queue C×K'):
        info_nce(*(torch.zeros(shape) for shape in shapes))
