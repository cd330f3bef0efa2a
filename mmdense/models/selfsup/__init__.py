# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Import the algorithms: every file of this folder, so that a new one needs no line here."""

from importlib import import_module
from pkgutil import iter_modules

from .base import (
    AuthorsFormat,
    RunFacts,
    SelfSupervisor,
    Setting,
    Views,
    registered_algorithms,
)
from .detector import DetectorSelfSupervisor
from .local_contrast import LocalContrast
from .momentum import MomentumSelfSupervisor

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

_algorithms = {kind.__name__: kind for kind in registered_algorithms()}
globals().update(_algorithms)

__all__ = [
    'AuthorsFormat',
    'DetectorSelfSupervisor',
    'LocalContrast',
    'MomentumSelfSupervisor',
    'RunFacts',
    'SelfSupervisor',
    'Setting',
    'Views',
    'registered_algorithms',
    *_algorithms,
]
