# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
from importlib import import_module
from typing import List

from .compat import check_dependencies, find_config_packages, runs_command
from .utils.mmengine_patches import map_config_packages
from .version import __version__

__all__ = ['__version__', 'get_model', 'list_models']
_PACKAGES = (
    *('apis', 'checkpoints', 'datasets', 'engine', 'evaluation', 'models', 'registry', 'utils'),
    'visualization',
)


def prepare() -> None:
    """Check the packages that mmdense stands on, and tell MMEngine where configs are.

    ``import mmdense`` calls it; the command ``mmdense`` calls it when a command needs them.

    Raises:
        ImportError: A package is missing, too old or too new; with the command that fixes it.
    """
    check_dependencies()
    map_config_packages(find_config_packages(), {__name__: os.path.dirname(__file__)})


def __getattr__(name: str):
    """Import a package of mmdense, or a function of apis and with it PyTorch, at its first use."""
    if name in _PACKAGES:
        return import_module(f'.{name}', __name__)
    if name in ('get_model', 'list_models'):
        return getattr(import_module('.apis.hub', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> List[str]:
    """Return the functions, the packages, and what every module has."""
    return sorted({*globals(), *__all__, *_PACKAGES})


if not runs_command():
    prepare()
