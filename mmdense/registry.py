# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""mmdense's registries: direct children of MMEngine's, scope ``mmdense``.

There is one for EVERY root registry of MMEngine, also those that mmdense adds
nothing to: a config with ``default_scope='mmdense'`` looks every type up here
first and falls back to the parent; a missing child would make MMEngine warn
and miss. They are direct children of the roots (not of mmpretrain's), or
sibling packages (mmdet, mmseg) could not resolve ``mmdense.<Type>``.

MMEngine imports this module by itself when it meets the prefix ``mmdense.``
in a config, so other projects need no import of their own.
"""

from typing import Optional, Type

import mmengine.registry as root
from mmengine.registry import Registry


def _child(name: str, location: str, kind: Type[Registry] = Registry) -> Registry:
    """A child of the root registry ``name`` that imports ``location`` before
    its first look-up."""
    parent = getattr(root, name)
    return kind(parent.name, parent=parent, scope='mmdense', locations=[location])


class _WithMMPretrain(Registry):
    """Look the name of a backbone up in mmpretrain, where it has no prefix and neither mmdense nor
    MMEngine has it: ``type='ResNetV1c'`` is ``mmpretrain.ResNetV1c`` in mmdense's configs."""

    def get(self, key: str) -> Optional[Type]:
        """Return the class of this name; None where there is none."""
        found = super().get(key)
        if found is None and isinstance(key, str) and '.' not in key:
            from mmpretrain.registry import MODELS as others

            found = others.get(key)
            if '.backbones.' not in getattr(found, '__module__', ''):
                return None
        return found


RUNNERS = _child('RUNNERS', 'mmdense.engine')
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS', 'mmdense.engine')
LOOPS = _child('LOOPS', 'mmdense.engine')
HOOKS = _child('HOOKS', 'mmdense.engine')
STRATEGIES = _child('STRATEGIES', 'mmdense.engine')
LOG_PROCESSORS = _child('LOG_PROCESSORS', 'mmdense.engine')
OPTIMIZERS = _child('OPTIMIZERS', 'mmdense.engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'mmdense.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'mmdense.engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', 'mmdense.engine')
INFERENCERS = _child('INFERENCERS', 'mmdense.engine')

DATASETS = _child('DATASETS', 'mmdense.datasets')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'mmdense.datasets')
TRANSFORMS = _child('TRANSFORMS', 'mmdense.datasets')
FUNCTIONS = _child('FUNCTIONS', 'mmdense.datasets')

MODELS = _child('MODELS', 'mmdense.models', _WithMMPretrain)
MODEL_WRAPPERS = _child('MODEL_WRAPPERS', 'mmdense.models')
TASK_UTILS = _child('TASK_UTILS', 'mmdense.models')

WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'mmdense.checkpoints')

METRICS = _child('METRICS', 'mmdense.evaluation')
EVALUATOR = _child('EVALUATOR', 'mmdense.evaluation')

VISUALIZERS = _child('VISUALIZERS', 'mmdense.visualization')
VISBACKENDS = _child('VISBACKENDS', 'mmdense.visualization')
