# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .compat import check_dependencies, map_packages
from .version import __version__

check_dependencies()
map_packages()

__all__ = ['__version__']
