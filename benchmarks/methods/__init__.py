# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define what is measured of each algorithm, in a file each, which names nothing else.

A file has ``losses(args)``, see ``loss.py``, and ``floor(model, inputs, args)``, see ``step.py``;
``SETTING``, what else is in the setting of its rows; ``TARGET``, of a step over its floor; and
``PEERS``, by their names in the tables: a config of mmpretrain, or a function that builds one. It
may have ``LOSS_OPTIONS`` for loss.py; ``MORE``, what ``make bench-full`` also runs; and
``SHIPPED``, mmpretrain's config of the same algorithm: then runs and scaling are compared too;
``READS``, how often a step reads values of the device, 0 without;
``GPU``, False where ``make bench`` and gpu.py time its step only when asked; ``GAINS``, what the
page begins with: words, the results that may have it, what the row has behind the algorithm's
name, and its peer.
"""

from importlib import import_module
from pkgutil import iter_modules


def names():
    """Return the names of all, as commands take them."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name):
    """Import what is measured of an algorithm."""
    return import_module(f'{__name__}.{name}')


def reads(name):
    """Return how often a step of an algorithm reads values of the device; 0 where nothing else is
    measured of it."""
    return getattr(load(name), 'READS', 0) if name in names() else 0


def shipped():
    """Return the names of those that mmpretrain has too."""
    return [name for name in names() if hasattr(load(name), 'SHIPPED')]


def quick():
    """Return the names of those whose step is timed without being asked for, and that mmpretrain
    has too."""
    return [name for name in shipped() if getattr(load(name), 'GPU', True)]


def example():
    """Return the name of the one that runs and scaling are measured of without another choice: the
    one whose gain the page begins with."""
    (name,) = [name for name in shipped() if 'end_to_end' in str(getattr(load(name), 'GAINS', ''))]
    return name
