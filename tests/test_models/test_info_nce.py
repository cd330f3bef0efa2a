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
    block=st.tuples(st.integers(1, 50), st.integers(1, 2000)),
    at_once=st.booleans(),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(rows, channels, length, block, at_once, temperature, seed):
    """At once, and in whatever blocks; loss and both gradients."""
    query, key, queue = random_input(rows, channels, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_BLOCK', {'cpu': block})
        patch.setattr(module, '_AT_ONCE', 10**9 if at_once else 0)
        ours = info_nce(query, key, queue, temperature)
    theirs = plain_info_nce(query, key, queue, temperature)
    close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, [query, key]), torch.autograd.grad(theirs, [query, key])
    ):
        close(a, b)


@pytest.mark.parametrize('rows, length', [(98, 65536), (32, 4096), (33, 4096)])
def test_real_size_gradient(rows, length):
    """Streamed; and on both sides of the size from which it is."""
    query, key, queue = random_input(rows, 128, length)
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


def test_the_size_decides(monkeypatch):
    calls = []
    for name in ('_contrast_at_once', '_contrast_streamed'):
        function = getattr(module, name)
        call = lambda *args, name=name, f=function: calls.append(name) or f(*args)  # noqa: E731
        monkeypatch.setattr(module, name, call)
    info_nce(*random_input(32, 8, 4096))
    info_nce(*random_input(33, 8, 4096))
    assert calls == ['_contrast_at_once', '_contrast_streamed']


both_ways = pytest.mark.parametrize('at_once', [True, False], ids=['at once', 'streamed'])


@pytest.fixture
def way(at_once, monkeypatch):
    monkeypatch.setattr(module, '_AT_ONCE', 10**9 if at_once else 0)


@both_ways
def test_gradcheck(way):
    query, key, queue = (x.detach().double() for x in random_input(7, 5, 30))
    query, key = query.requires_grad_(), key.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: info_nce(q, k, queue, 0.3), (query, key))


@both_ways
def test_without_gradients(way):
    query, key, queue = (x.detach() for x in random_input(7, 5, 30))
    close(info_nce(query, key, queue), plain_info_nce(query, key, queue, 0.2))


@both_ways
def test_large_logits_stay_finite(way):
    """No overflow where exp() of a logit alone would."""
    query, key, queue = random_input(6, 8, 50, scale=300.0)
    ours, theirs = info_nce(query, key, queue, 0.07), plain_info_nce(query, key, queue, 0.07)
    assert torch.isfinite(ours)
    close(ours, theirs)


@both_ways
def test_queue_may_change_before_backward(way):
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
    _, numbers = module._BLOCK['cpu']
    assert largest.numel <= numbers < 1200 * 9000


def test_nothing_of_the_size_of_the_logits_waits_for_backward():
    """Also at once: the formula keeps them."""
    sizes = []

    def keep(x):
        sizes.append(x.numel())
        return x

    query, key, queue = random_input(32, 16, 4096)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        info_nce(query, key, queue)
    assert sizes and max(sizes) <= query.numel()


@pytest.mark.parametrize(
    'shapes', [((4, 8), (5, 8), (8, 9)), ((4, 8), (4, 8), (9, 8)), ((8,), (8,), (8, 9))]
)
def test_wrong_shapes_say_so(shapes):
    with pytest.raises(InputError, match='query M×C, key M×C and queue C×K'):
        info_nce(*(torch.zeros(shape) for shape in shapes))
