# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A pickle that can only make what a training checkpoint consists of.

An ordinary pickle may call any function when it is loaded. This module stands
in for ``pickle`` in ``torch.load(..., pickle_module=restricted_pickle)`` and
knows tensors, numpy arrays and scalars, plain containers and MMEngine's
``HistoryBuffer``, which is what ``weights_only=True`` lacks for resuming.
It also works on PyTorch releases whose ``weights_only`` has no allow-list.

Classes of packages that are not on the lists, such as Lightning's callbacks, become placeholders,
which hold nothing and call nothing; nothing of Python's own library, of PyTorch, numpy or OpenMMLab
does, but for the networks of PyTorch and torchvision.

A file can do three things only, each with a list of its own below: call
something (``_CALLED``), refer to something that it cannot call (``_NAMED``,
``_METHODS``), and fill an object that it has made (``_FILLED``). What these
three copy is counted, so that a small file cannot fill the memory by copying
the same thing again and again.
"""

import _compat_pickle
import argparse
import collections
import datetime
import math
import pathlib
import pickle
import sys
import sysconfig
from types import SimpleNamespace
from typing import Any, Dict, Optional, Set

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

# Packages of which nothing becomes a placeholder: a checkpoint that names a function of theirs
# means to call it.
_REFUSED = {
    *getattr(sys, 'stdlib_module_names', ()),  # since Python 3.10
    *sys.builtin_module_names,
    *(name.split('.')[0] for name in _compat_pickle.IMPORT_MAPPING),  # Python 2's
    *(path.stem for path in pathlib.Path(sysconfig.get_path('stdlib')).iterdir()),
    *('torch', 'torchvision', 'numpy', 'pip', 'pkg_resources', 'setuptools', 'yaml', 'joblib'),
    *('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'mmdense', 'dill', 'cloudpickle'),
} - {'typing', 'enum'}

# But for the classes of networks.
_NETWORKS = ('torch.nn.modules.', 'torchvision.models.')

UnpicklingError = pickle.UnpicklingError
_make_scalar = np.float64().__reduce__()[0]  # in a module that numpy 2 renamed

# Bytes that the calls of one file may copy; to them comes a multiple of the file's size.
_ALLOWANCE = 64 << 20
_ALLOWANCE_PER_BYTE = 8
_ITEM = 64  # bytes that an item of a container is taken for


class RefusedError(UnpicklingError):
    """The pickle asks for something that is not on the lists."""

    def __init__(self, what: str) -> None:
        super().__init__(ascii(what)[1:-1][:120])  # the file chose the text: keep it one line


class Placeholder(dict):
    """Stand in for an object of a class that is not on the lists: it keeps nothing of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment] # it may be a key of a dict

    def __eq__(self, other: Any) -> bool:
        return self is other


def _placeholder(module: str, name: str) -> type:
    """Make the stand-in for a class; refuse what no package's class is called."""
    parts = [*module.split('.'), *name.split('.')]
    network = module.startswith(_NETWORKS) and name[:1].isupper()  # lightly-train pickles them
    if parts[0] in _REFUSED and not network or not all(part.isidentifier() for part in parts):
        raise RefusedError(f'{module}.{name}')
    return type(name, (Placeholder,), {'__module__': module})


def _is_placeholder(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Placeholder)


def _named(value: Any) -> str:
    """For messages. repr() of what is in a file can be of any length."""
    return value if isinstance(value, str) else getattr(value, '__name__', type(value).__name__)


# Harmless functions replace those that could do harm. numpy's and torch's
# own trust their arguments: with wrong ones they would corrupt memory.


def _method(owner: Any, name: str) -> Any:
    """``getattr``, by which Python pickles the functions inside a class."""
    if not isinstance(owner, type) or name not in _METHODS.get(owner, ()):
        raise RefusedError(f'getattr of {_named(name)} in {_named(owner)}')
    return getattr(owner, name)


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Encode bytes as Python pickles them by protocol 2; other codecs could grow the text."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise RefusedError(f'_codecs.encode of {_named(type(text))} as {_named(encoding)}')
    return text.encode('latin1')


def _dtype(name: str, *_align_copy: Any) -> np.dtype:
    if type(name) is str:
        dtype = np.dtype(name, False, True)  # a copy: its byte order may be set later
        if dtype.kind in 'biufcSU':  # no Python objects, no structures
            return dtype
    raise RefusedError(f'numpy.dtype {_named(name)}')


def _empty_array(kind: Any, *_shape_dtype: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise RefusedError(f'an array of type {_named(kind)}')
    return np.empty(0, 'b')  # _fill_array does the rest


def _array(data: bytes, dtype: np.dtype, shape: tuple, order: str = 'C') -> np.ndarray:
    array = np.frombuffer(bytes(data), _checked(dtype))
    return array.reshape(shape, order=order).copy(order)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    if type(data) is not bytes or len(data) != _checked(dtype).itemsize:
        raise RefusedError('a numpy scalar of another size than its data')
    return _make_scalar(dtype, data)


def _checked(dtype: Any) -> np.dtype:
    if not isinstance(dtype, np.dtype):  # those that exist come from _dtype
        raise RefusedError('an array without a dtype')
    return dtype


def _tensor_with_attributes(rebuild: Any, kind: Any, args: tuple, _state: Any) -> torch.Tensor:
    """A tensor without the attributes that it had, which no loading needs."""
    if rebuild not in _REBUILD or kind not in (torch.Tensor, torch.nn.Parameter):
        raise RefusedError(f'a tensor of type {_named(kind)} by {_named(rebuild)}')
    tensor = rebuild(*args)
    return tensor if type(tensor) is kind else tensor.as_subclass(kind)


def _parameter(data: torch.Tensor, requires_grad: bool, *_hooks_state: Any) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise RefusedError('a parameter of no tensor')
    return torch.nn.Parameter(data, bool(requires_grad))


def _inside(rebuild: Any) -> Any:
    """PyTorch enlarges a storage that is too short for a tensor, by what lies in memory."""

    def checked(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> torch.Tensor:
        whole = len(size) == len(stride)
        whole = whole and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if whole else 0
        held = storage._untyped_storage.nbytes() // storage._element_size()
        if not whole or (math.prod(size) and last >= held):
            raise RefusedError('a tensor of another size than its storage')
        return rebuild(storage, offset, size, stride, *rest)

    return checked


_rebuild_tensor = _inside(torch._utils._rebuild_tensor)
_rebuild_tensor_v2 = _inside(torch._utils._rebuild_tensor_v2)
_REBUILD = (_rebuild_tensor, _rebuild_tensor_v2, _parameter)

_CALLED = {
    **{
        f'builtins.{kind.__name__}': kind
        for kind in (bytes, bytearray, complex, frozenset, range, set, slice)
    },
    'builtins.xrange': range,  # Python 2's name, as PyTorch's pickles (protocol 2) have it
    'builtins.getattr': _method,
    '_codecs.encode': _encode,
    **{
        f'{kind.__module__}.{kind.__name__}': kind
        for kind in (collections.OrderedDict, collections.defaultdict)
        + (collections.Counter, collections.deque, argparse.Namespace)
        + (datetime.datetime, datetime.date, datetime.time)
        + (datetime.timedelta, datetime.timezone)
    },
    'pathlib.PosixPath': pathlib.PurePath,  # a path as such, on any system
    'pathlib.PurePosixPath': pathlib.PurePosixPath,
    'pathlib.WindowsPath': pathlib.PureWindowsPath,
    'pathlib.PureWindowsPath': pathlib.PureWindowsPath,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch.serialization._get_layout': torch.serialization._get_layout,
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_with_attributes,
    'numpy.dtype': _dtype,
    'numpy.core.multiarray._reconstruct': _empty_array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy.core.numeric._frombuffer': _array,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'mmengine.config.config.ConfigDict': ConfigDict,
}

_NAMED = {
    **{f'builtins.{kind.__name__}': kind for kind in (bool, int, float, str, dict, list, tuple)},
    'builtins.long': int,
    'builtins.unicode': str,
    'torch.Tensor': torch.Tensor,
    'torch.nn.parameter.Parameter': torch.nn.Parameter,
    'numpy.ndarray': np.ndarray,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': OneCycleParamScheduler,
}  # and every dtype of torch and numpy

_METHODS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _fill_attributes(target: Any, state: dict) -> None:
    vars(target).update(state)  # such as a state_dict's _metadata


def _fill_history(history: HistoryBuffer, state: dict) -> None:
    # Not statistics_methods: __setstate__ would set them for every other buffer.
    names = ('max_length', '_log_history', '_count_history')
    history.__setstate__({name: state[name] for name in names})


def _fill_dtype(dtype: np.dtype, state: tuple) -> None:
    order, extras = state[1], state[2:5] + state[8:]
    if order not in ('<', '>', '|', '=') or any(extra is not None for extra in extras):
        raise RefusedError('a structured numpy.dtype')
    # of what the file says, the byte order only
    dtype.__setstate__(dtype.newbyteorder(order).__reduce__()[2])


def _fill_array(array: np.ndarray, state: tuple) -> None:
    _, shape, dtype, fortran, data = state
    whole = type(data) is bytes and all(type(n) is int and n >= 0 for n in shape)
    itemsize = _checked(dtype).itemsize or 1  # of an empty text: none of those in an array
    if array.size or not whole or math.prod(shape) * itemsize != len(data):
        raise RefusedError('an array of another size than its data')
    array.__setstate__((1, tuple(shape), dtype, bool(fortran), data))


_FILLED = {
    collections.OrderedDict: _fill_attributes,
    argparse.Namespace: _fill_attributes,
    HistoryBuffer: _fill_history,
    np.dtype: _fill_dtype,
    np.ndarray: _fill_array,
}


def _weight(value: Any, most: int) -> int:
    """About how many bytes a copy of something takes, down to its last item; an item that is
    there more than once counts as often. No further than ``most``."""
    total, todo = 0, [value]
    while todo and total <= most:
        item = todo.pop()
        total += _ITEM
        if isinstance(item, (str, bytes, bytearray)):
            total += len(item)
        elif isinstance(item, np.ndarray):
            total += item.nbytes
        elif isinstance(item, range):
            total += _ITEM * max(0, (item.stop - item.start) // item.step)
        elif isinstance(item, HistoryBuffer):
            todo += vars(item).values()
        elif isinstance(item, dict):
            todo += [*dict.keys(item), *dict.values(item)]
        elif isinstance(item, (list, tuple, set, frozenset, collections.deque)):
            todo += item
    return total


_DEPTH = {'load_append': 2, 'load_setitem': 3}  # the others' items lie on a stack of their own


def _into(opcode: Any, *kinds: type) -> Any:
    """An opcode that adds items, to these containers only: what else has
    ``append`` or ``[]`` is not to be reached."""
    keyed, single = kinds != (list, collections.deque), opcode.__name__ in _DEPTH

    def checked(self) -> None:
        depth = _DEPTH.get(opcode.__name__)
        target = self.stack[-depth] if depth else self.metastack[-1][-1]
        if not isinstance(target, kinds):
            raise RefusedError(f'items in {_named(type(target))}')
        if keyed:
            items = self.stack[-2:] if single else self.stack
            for item in items:  # a tuple's hash goes through all of it; ConfigDict copies items
                if type(item) is tuple or isinstance(target, ConfigDict):
                    self.spend(_weight(item, self.left))
        opcode(self)

    return checked


def _tuple(opcode: Any) -> Any:
    """An opcode that makes a tuple. Python crashes on the hash of a deep one."""

    def checked(self) -> None:
        opcode(self)
        made = self.stack[-1]
        inner = [self.depths.get(id(item), (0,))[0] for item in made if type(item) is tuple]
        depth = 1 + max(inner, default=0)
        if depth > 100:
            raise RecursionError('tuples within tuples')
        self.depths[id(made)] = depth, made  # which keeps it, and so its id, alive

    return checked


def _refuse(_unpickler: Any) -> None:
    raise RefusedError('a kind of pickle that PyTorch does not write')


class Unpickler(pickle._Unpickler):
    """Python's own in Python, for that in C cannot be told what to refuse."""

    dispatch = dict(pickle._Unpickler.dispatch)
    file_size: int  # these are of one file: see module()
    sizes: Optional[Dict[str, int]]
    seen: Set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.depths: Dict[int, tuple] = {}
        self.left = _ALLOWANCE + _ALLOWANCE_PER_BYTE * self.file_size
        self.data_left = self.file_size

    def spend(self, size: int) -> None:
        """Before so many bytes are copied."""
        self.left -= max(size, 0)
        if self.left < 0:
            raise MemoryError(f'copies out of proportion to a file of {self.file_size:,} bytes')

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')
        module = module.replace('pathlib._local', 'pathlib')  # Python 3.13
        full = f'{module}.{name}'
        for allowed in (_CALLED, _NAMED):
            if full in allowed:
                return allowed[full]
        owner, _, method = full.rpartition('.')  # protocol 4 has a class's functions by name
        if owner in _CALLED or owner in _NAMED:
            return _method(_CALLED.get(owner, _NAMED.get(owner)), method)
        value = None
        if module == 'torch':
            value = getattr(torch, name, None)
        elif module in ('numpy', 'numpy.dtypes'):
            value = getattr(np, name, getattr(getattr(np, 'dtypes', None), name, None))
        is_type = isinstance(value, type) and issubclass(value, (np.generic, np.dtype))
        if is_type or isinstance(value, torch.dtype):
            return value
        return _placeholder(module, name)

    def load_global(self) -> None:
        module, name = self.readline(), self.readline()
        if not name.endswith(b'\n'):  # Python's own takes half a name at the end of a cut file
            raise EOFError
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def load_reduce(self) -> None:
        function = self.stack[-2]
        called = any(function is allowed for allowed in _CALLED.values())
        if not called and not _is_placeholder(function):
            raise RefusedError(f'a call of {_named(function)}')
        self._call(super().load_reduce)

    def _call(self, opcode: Any) -> None:
        function, args = self.stack[-2:]
        self.spend(_weight(args, self.left))
        if function in (bytes, bytearray) and args and isinstance(args[0], int):
            self.spend(args[0])  # so many zeros
        opcode()
        made = self.stack[-1]
        if isinstance(made, torch.Tensor):  # repeats its storage, as expand() does
            self.spend(made.numel() * made.element_size() - made.untyped_storage().nbytes())

    def load_newobj(self) -> None:
        kind = self.stack[-2]
        called = isinstance(kind, type) and kind in _CALLED.values()
        if not called and not _is_placeholder(kind):
            raise RefusedError(f'an instance of {_named(kind)}')
        self._call(super().load_newobj)

    def load_build(self) -> None:
        """Python's own sets any attribute of anything, functions and classes too."""
        state = self.stack.pop()
        target = self.stack[-1]
        kind = np.dtype if isinstance(target, np.dtype) else type(target)
        if _is_placeholder(kind):
            return
        if kind not in _FILLED:
            raise RefusedError(f'a change of {_named(target)}')
        self.spend(_weight(state, self.left))
        _FILLED[kind](target, state)

    def load_bytearray8(self) -> None:
        """Refuse a length that the file does not have before Python allocates it."""
        start = self.read(8)
        self.append(bytearray(self.read(int.from_bytes(start, 'little'))))

    def load_binpersid(self) -> None:
        """A storage. Older formats have other things, by which PyTorch writes files."""
        what, *rest = self.stack[-1]
        if what not in ('storage', b'storage'):
            raise RefusedError(f'a persistent {_named(what)}')
        kind, key, _, count, *view = rest
        if any(item is not None for item in view):
            raise RefusedError('a view of a storage')
        # PyTorch 2.1 believes the count and reads or writes beyond what the file holds; the old
        # format's reader makes it first, and leaves it as it lay in memory if there is no data.
        size = count * torch.empty(0, dtype=kind.dtype).element_size()
        if self.sizes is not None and size != self.sizes[f'data/{key}']:
            raise RefusedError('a storage of another size than its data')
        if key not in self.seen:
            self.data_left -= size
        if size < 0 or self.data_left < 0:
            raise EOFError
        self.seen.add(key)
        super().load_binpersid()

    dispatch.update(
        {
            pickle.GLOBAL[0]: load_global,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.BUILD[0]: load_build,
            pickle.BINPERSID[0]: load_binpersid,
            pickle.BYTEARRAY8[0]: load_bytearray8,
            pickle.APPEND[0]: _into(pickle._Unpickler.load_append, list, collections.deque),
            pickle.APPENDS[0]: _into(pickle._Unpickler.load_appends, list, collections.deque),
            pickle.SETITEM[0]: _into(pickle._Unpickler.load_setitem, dict),
            pickle.SETITEMS[0]: _into(pickle._Unpickler.load_setitems, dict),
            pickle.ADDITEMS[0]: _into(pickle._Unpickler.load_additems, set),
            pickle.TUPLE[0]: _tuple(pickle._Unpickler.load_tuple),
            pickle.TUPLE1[0]: _tuple(pickle._Unpickler.load_tuple1),
            pickle.TUPLE2[0]: _tuple(pickle._Unpickler.load_tuple2),
            pickle.TUPLE3[0]: _tuple(pickle._Unpickler.load_tuple3),
            # by keyword arguments (NEWOBJ_EX) torch takes raw pointers
            pickle.NEWOBJ_EX[0]: _refuse,
            pickle.INST[0]: _refuse,
            pickle.OBJ[0]: _refuse,
            pickle.PERSID[0]: _refuse,
            pickle.EXT1[0]: _refuse,
            pickle.EXT2[0]: _refuse,
            pickle.EXT4[0]: _refuse,
        }
    )


def module(file_size: int, sizes: Optional[Dict[str, int]]) -> Any:
    """Replace ``pickle`` for one file.

    Args:
        file_size (int): Of the file, in bytes.
        sizes (dict[str, int], optional): Of the storages in a zip file, in bytes; None for the
            old format, whose storages follow the pickles.
    """
    seen: Set[str] = set()  # keys of the storages that were asked for
    unpickler = type('Unpickler', (Unpickler,), dict(file_size=file_size, sizes=sizes, seen=seen))

    def load(file: Any, **kwargs: Any) -> Any:
        """Check the pickles before and after the main one of the old format. Last, once that has
        named its storages, the keys of those that follow."""
        loaded = unpickler(file, **kwargs).load()
        if seen and set(loaded) != seen:
            raise EOFError
        return loaded

    return SimpleNamespace(__name__=__name__, Unpickler=unpickler, load=load)
