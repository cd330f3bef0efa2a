# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os

from .compat import check_dependencies, find_config_packages
from .utils.mmengine_patches import map_config_packages
from .version import __version__

check_dependencies()
map_config_packages(find_config_packages(), {__name__: os.path.dirname(__file__)})

__all__ = ['__version__', 'get_model', 'list_models']


def __getattr__(name: str):
    """Import a function of apis, and with it PyTorch, at its first use."""
    if name in ('get_model', 'list_models'):
        from .apis import hub

        return getattr(hub, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
