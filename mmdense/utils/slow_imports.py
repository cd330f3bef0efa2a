# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Shorten what the import of other packages costs, before any of them is imported.

Start-up is mostly imports, and a third of them served nothing: mmpretrain imports all of mmdet for
one layer; PyTorch compiles the functional optimizers of ``torch.distributed.optim`` for TorchScript
when MMEngine asks that package for another class; and Python's garbage collector looks through a
million objects again and again, all of which stay.
"""

import gc
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Callable, Dict, Optional

_LAYER = 'mmpretrain.models.utils.res_layer_extra_norm'
_LARGE = ('torch', 'torchvision', 'mmengine.model', 'mmengine.runner', 'mmpretrain.models')


class _Loaders(MetaPathFinder):
    """Let functions execute modules: each takes the module, and its loader's own function.

    Args:
        functions (dict[str, Callable]): Functions by the name of the module; each is called once.
    """

    def __init__(self, functions: Dict[str, Callable[[ModuleType, Callable], None]]) -> None:
        self.functions = functions
        self.searching = False

    def find_spec(self, name: str, path=None, target: Optional[ModuleType] = None):
        if self.searching or name not in self.functions:
            return None
        self.searching = True
        try:
            spec = find_spec(name)  # by the other finders
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                function = self.functions.pop(name, None)
                execute(module) if function is None else function(module, execute)

            spec.loader.exec_module = exec_module
        return spec


def shorten_imports() -> None:
    """Make later imports of other packages cheaper, for the programs of mmdense.

    A program calls this before it imports another package; ``import mmdense`` does not.

    The import of mmdet by mmpretrain waits until someone else imports mmdet's models, the
    functional optimizers of ``torch.distributed.optim`` stay Python classes, and the garbage
    collector pauses during large imports. What is imported already stays as it is.
    """
    if any(isinstance(finder, _Loaders) for finder in sys.meta_path):
        return
    functions = dict.fromkeys(_LARGE, _without_collector)
    functions['torch.distributed.optim'] = _without_script
    if 'mmdet.models' not in sys.modules:
        functions[_LAYER] = _postpone_layer
    sys.meta_path.insert(0, _Loaders(functions))


def keep_imports() -> None:
    """Take all objects of now, once in a process, out of the garbage collector's sight.

    Call it when the imports are done. A collection then takes milliseconds, and workers that are
    forked copy fewer pages.
    """
    if gc.get_freeze_count() == 0:
        gc.freeze()


def _without_collector(module: ModuleType, execute: Callable) -> None:
    """Execute a module whose objects stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        execute(module)
    finally:
        if enabled:
            gc.enable()


def _without_script(module: ModuleType, execute: Callable) -> None:
    """Execute a module whose ``torch.jit.script`` returns classes as they are."""
    from torch.jit import _state

    enabled = bool(_state._enabled)
    _state.disable()
    try:
        execute(module)
    finally:
        if enabled:
            _state.enable()


def _postpone_layer(module: ModuleType, execute: Callable) -> None:
    """Give mmpretrain's module what it has without mmdet, and complete it after mmdet's models.

    The layer is one of mmdet's registry: no config names it before mmdet's models are imported.
    """
    if 'mmdet.models' in sys.modules:
        execute(module)
        return
    module.ResLayerExtraNorm = None

    def complete(models: ModuleType, execute_models: Callable) -> None:
        execute_models(models)
        execute(module)
        sys.modules['mmpretrain.models.utils'].ResLayerExtraNorm = module.ResLayerExtraNorm

    sys.meta_path.insert(0, _Loaders({'mmdet.models': complete}))
