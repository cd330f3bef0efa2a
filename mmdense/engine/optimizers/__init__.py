# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .amp_optim_wrapper import AmpOptimWrapper
from .lars import LARS
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['AmpOptimWrapper', 'LARS', 'LayerDecayOptimWrapperConstructor']
