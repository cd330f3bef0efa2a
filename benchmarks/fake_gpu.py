# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Run training steps on a GPU that is not there, by PyTorch's FakeTensorMode.

    with fake_cuda(model), Reads() as reads:       # reads.seen: what made the host wait
        with torch.autocast('cuda', torch.bfloat16):
            losses = model(*to_fake(batch), mode='loss')
        backward(sum(losses.values()))             # optimizers of these parameters: made inside

Fake tensors have shape, dtype and device and no values: an operation that mixes devices raises,
and one that needs values on the host raises or, within :class:`Reads`, is noted. The same code
runs where there is a GPU; nothing is computed there either. Older versions of PyTorch cannot, see
:func:`is_supported`.
"""

import importlib
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

STAND_IN = 2  # what a number is that a step reads on the host
_BETWEEN_DEVICES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


def is_supported():
    """Return whether this PyTorch runs fake CUDA tensors without a GPU."""
    return hasattr(torch._C, '_ensureCUDADeviceGuardSet')


@contextmanager
def fake_cuda(*modules):
    """Give modules fake parameters and buffers on a GPU, and their own ones back at the end.

    What a first step reads must have been read: run one before, on the CPU. ``torch.autocast``
    of 'cuda' works inside, as on a GPU that knows bfloat16.

    Args:
        modules (nn.Module): Parameters, buffers and gradients may be on any device.

    Yields:
        FakeTensorMode: The mode that is active. Modules are to be built outside of it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    parts = [part for module in modules for part in module.modules()]
    before = [(part, dict(part._parameters), dict(part._buffers)) for part in parts]
    fakes = {}  # a tensor that several modules share stays one
    with ExitStack() as stack:
        common = torch.cuda.amp.common
        stack.enter_context(mock.patch.object(common, 'amp_definitely_not_available', bool))
        stack.enter_context(mock.patch.object(torch.cuda, 'is_bf16_supported', lambda *_: True))
        for part in parts:
            if isinstance(part, BaseDataPreprocessor):
                stack.enter_context(mock.patch.object(part, '_device', torch.device('cuda')))
        stack.enter_context(mode)
        try:
            for part, parameters, buffers in before:
                for own in (parameters, buffers):
                    for key, tensor in own.items():
                        if tensor is not None and id(tensor) not in fakes:
                            fakes[id(tensor)] = to_fake(tensor)
                        target = part._parameters if own is parameters else part._buffers
                        target[key] = fakes.get(id(tensor))
            yield mode
        finally:
            for part, parameters, buffers in before:
                part._parameters.update(parameters)
                part._buffers.update(buffers)


def to_fake(value, device='cuda'):
    """Return fake tensors on a device for all tensors in a value, within :func:`fake_cuda`.

    Args:
        value (Any): A tensor, a parameter, or tuples, lists and dicts of them. Tensors in data
            samples stay where they are, as they do in training.
        device (str): Where the tensors go.
    """
    if isinstance(value, Tensor):
        layout = value.shape, value.stride()
        fake = torch.empty_strided(*layout, dtype=value.dtype, device=device)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(fake, requires_grad=value.requires_grad)
        return fake.requires_grad_(value.requires_grad)
    if isinstance(value, BaseDataElement):
        fake = type(value)()
        for kind, fields in (('metainfo', value.metainfo_items()), ('data', value.items())):
            for key, field in fields:
                fake.set_field(to_fake(field, 'cpu'), key, field_type=kind)
        return fake
    if isinstance(value, (tuple, list)):
        return type(value)(to_fake(part, device) for part in value)
    if isinstance(value, dict):
        return {key: to_fake(part, device) for key, part in value.items()}
    return value


class Reads(TorchDispatchMode):
    """Note what makes the host wait for the device, and answer with a stand-in.

    To be entered inside of :func:`fake_cuda`. Operations whose output's shape depends on values
    (``nonzero``, an index that is a mask) raise an error of PyTorch's by themselves.

    Args:
        matching (bool): Whether mmdet's detectors match on the host, by ``linear_sum_assignment``
            and ``nonzero``: these have stand-ins then. Defaults to False.

    Attributes:
        seen (Counter): How often each kind was met: 'tolist' (one for a tensor), 'item' (also
            ``bool()``, ``int()`` and ``float()``), 'copy' (to or from the device, blocking; of
            an index too), 'event' (``torch.cuda.Event.synchronize()``), 'rows' (``nonzero``,
            ``unique`` and an index that is a mask of rows, with ``matching``).
    """

    def __init__(self, matching=False):
        super().__init__()
        self.seen = Counter()
        self.matching = matching

    def __enter__(self):
        event = mock.Mock(synchronize=lambda: self.seen.update(['event']))
        self._patches = [
            mock.patch.object(FakeTensor, 'tolist', lambda tensor: self._tolist(tensor)),
            mock.patch.object(torch.cuda, 'Event', lambda *_, **__: event),
        ]
        if self.matching:
            assigner = 'mmdet.models.task_modules.assigners.hungarian_assigner'
            self._patches += [
                mock.patch(f'{assigner}.linear_sum_assignment', _assign),
                mock.patch.object(torch, 'from_numpy', _indices),
            ]
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        for patch in self._patches:
            patch.stop()
        return super().__exit__(*error)

    def _note(self, kind, tensor):
        if tensor.device.type != 'cpu':
            self.seen[kind] += 1

    def _as_rows(self, index):
        """Return an index that is a mask of rows as numbers of rows."""
        if index is None or index.dtype != torch.bool:
            return index
        self._note('rows', index)
        return index.new_empty(STAND_IN, dtype=torch.int64)

    def _tolist(self, tensor):
        self._note('tolist', tensor)
        return _nested(tensor.shape, _stand_in(tensor))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.matching:  # the weights of mmdet's classes are a tensor, but no buffer
            real = [isinstance(x, Tensor) and not isinstance(x, FakeTensor) for x in args]
            args = [to_fake(x, 'cpu') if one else x for x, one in zip(args, real)]
        if func is torch.ops.aten._local_scalar_dense.default:
            self._note('item', args[0])
            return _stand_in(args[0])
        if self.matching and func is torch.ops.aten.nonzero.default:
            self._note('rows', args[0])
            return args[0].new_empty((STAND_IN, args[0].dim()), dtype=torch.int64)
        if self.matching and func is torch.ops.aten._unique2.default:
            self._note('rows', args[0])
            return args[0].clone(), *(args[0].new_empty(0, dtype=torch.int64) for _ in range(2))
        if self.matching and func is torch.ops.aten.index.Tensor:
            args = [args[0], [self._as_rows(index) for index in args[1]]]
        if func.overloadpacket in _INDEXING:
            self.seen.update(
                'copy' for i in args[1] if i is not None and i.device != args[0].device
            )
        result = func(*args, **kwargs)
        if func in _BETWEEN_DEVICES:
            source, target = (args[0], result) if func is _BETWEEN_DEVICES[0] else args[1::-1]
            waits = not (kwargs.get('non_blocking') or (len(args) > 2 and args[2]))
            if waits and source.device != target.device:
                self.seen['copy'] += 1
        return result


class _Matched(np.ndarray):
    """Rows or columns of a matching that nobody has computed."""


def _assign(costs):
    """Return a matching of fake costs, any: as many as SciPy matches. Of others, SciPy's."""
    if isinstance(costs, FakeTensor):
        return [np.arange(min(costs.shape)).view(_Matched)] * 2
    return importlib.import_module('scipy.optimize').linear_sum_assignment(costs)


def _indices(array, convert=torch.from_numpy):
    """Return a fake tensor on the CPU for a matching of fake costs."""
    if isinstance(array, _Matched):
        return torch.empty(array.shape, dtype=torch.int64)
    return convert(array)


def _stand_in(tensor):
    if tensor.dtype == torch.bool:
        return False
    return float(STAND_IN) if tensor.is_floating_point() else STAND_IN


def _nested(shape, value):
    return [_nested(shape[1:], value) for _ in range(shape[0])] if shape else value


@torch.no_grad()
def backward(loss):
    """Add gradients to the parameters as ``loss.backward()`` does.

    Its engine asks the driver for a context. Here the functions that autograd has recorded are
    called in the same order; hooks of tensors are not.

    Args:
        loss (Tensor): A scalar.
    """
    pending = _count_users(loss.grad_fn)
    incoming = defaultdict(dict, {loss.grad_fn: {0: torch.ones_like(loss)}})
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        grads = _call(node, incoming.pop(node, {}))
        for (following, number), grad in zip(node.next_functions, grads):
            if following is None:
                continue
            if grad is not None:
                grad = _fit(grad, following._input_metadata[number])
                known = incoming[following].get(number)
                incoming[following][number] = grad if known is None else known + grad
            pending[following] -= 1
            if not pending[following]:
                ready.append(following)


def _count_users(root):
    """Return how many edges lead to each function that autograd has recorded."""
    users, left, met = Counter(), [root], {root}
    while left:
        for following, _ in left.pop().next_functions:
            if following is not None:
                users[following] += 1
                if following not in met:
                    met.add(following)
                    left.append(following)
    return users


def _call(node, given):
    """Return a function's gradients, one for each of its edges."""
    if hasattr(node, 'variable'):  # the end of a path: a parameter
        for grad in given.values():
            known = node.variable.grad
            node.variable.grad = grad if known is None else known + grad
        return ()
    if not given:
        return [None] * len(node.next_functions)
    grads = [given.get(i) for i in range(len(node._input_metadata))]
    if not isinstance(node, BackwardCFunction):
        result = node(*grads)
        return result if isinstance(result, tuple) else (result,)
    # of a class of our own: it gives one for each argument, tensor or not
    result = node.apply(*grads)
    result = result if isinstance(result, tuple) else (result,)
    result = iter([grad for grad, needed in zip(result, node.needs_input_grad) if needed])
    return [following and next(result) for following, _ in node.next_functions]


def _fit(grad, expected):
    """Return a gradient in shape and dtype of what it is the gradient of.

    Raises:
        RuntimeError: It is on another device.
    """
    if grad.device != expected.device:
        raise RuntimeError(f'a gradient on {grad.device} of a tensor on {expected.device}')
    return grad.sum_to_size(expected.shape).to(expected.dtype)
