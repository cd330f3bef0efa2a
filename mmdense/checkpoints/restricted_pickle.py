# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A pickle that can only make what a training checkpoint consists of.

An ordinary pickle may call any function when it is loaded. This module stands
in for ``pickle`` in ``torch.load(..., pickle_module=restricted_pickle)`` and
knows tensors, numpy arrays and scalars, plain containers and MMEngine's
``HistoryBuffer``, which is what ``weights_only=True`` lacks for resuming.
It also works on PyTorch releases whose ``weights_only`` has no allow-list.
"""

import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

UnpicklingError = pickle.UnpicklingError

_ALLOWED = {
    'collections': {'OrderedDict', 'defaultdict'},
    'builtins': {
        'set',
        'frozenset',
        'complex',
        'slice',
        'range',
        'bytearray',
        'bytes',
        'int',
        'dict',
    },
    'argparse': {'Namespace'},
    '_codecs': {'encode'},
    'torch': {'Size', 'device', 'Tensor'},
    'torch._utils': {
        '_rebuild_tensor',
        '_rebuild_tensor_v2',
        '_rebuild_parameter',
        '_rebuild_parameter_with_state',
    },
    'torch.nn.parameter': {'Parameter'},
    'torch.serialization': {'_get_layout'},
    'torch.storage': {'TypedStorage', 'UntypedStorage'},
    'numpy': {'ndarray', 'dtype'},
    'numpy.core.multiarray': {'_reconstruct', 'scalar'},
    'numpy.core.numeric': {'_frombuffer'},
    'mmengine.logging.history_buffer': {'HistoryBuffer'},
}


class ForbiddenGlobalError(UnpicklingError):
    """The pickle asks for something that is not on the list."""


def _history_buffer_method(owner: Any, name: str) -> Any:
    """What ``getattr`` becomes: MMEngine pickles a buffer's statistics methods
    by it, and nothing else may be reached through it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ForbiddenGlobalError(f'getattr of {owner!r}')
    return getattr(owner, name)


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')
        if (module, name) == ('builtins', 'getattr'):
            return _history_buffer_method
        allowed = name in _ALLOWED.get(module, ())
        if module == 'torch' and '.' not in name:
            value = getattr(torch, name, None)
            allowed |= isinstance(value, torch.dtype) or name.endswith('Storage')
        elif module in ('numpy', 'numpy.dtypes') and '.' not in name:
            value = getattr(np, name, getattr(getattr(np, 'dtypes', None), name, None))
            allowed |= isinstance(value, type) and issubclass(value, (np.generic, np.dtype))
        if not allowed:
            raise ForbiddenGlobalError(f'{module}.{name}')
        if module.startswith('numpy.core'):
            module = _NUMPY_CORE + module[len('numpy.core') :]
        return super().find_class(module, name)


# numpy 2 moved numpy.core; its old name warns.
_NUMPY_CORE = 'numpy._core' if hasattr(np, '_core') else 'numpy.core'


def load(file, **kwargs) -> Any:
    """As ``pickle.load``."""
    return Unpickler(file, **kwargs).load()
