# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .compat import check_dependencies, map_packages
from .version import __version__

check_dependencies()
map_packages()

__all__ = ['__version__', 'get_model', 'list_models']


def __getattr__(name: str):
    """Imports PyTorch only where it is asked for."""
    if name in ('get_model', 'list_models'):
        from .apis import hub

        return getattr(hub, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
