# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Inspect a checkpoint: describe it, check its health, and fit it into a detector or segmenter."""

from .features import feature_health
from .fit import Fit, check_fit, filled_by_mmengine, groups, read_config, stock_lines
from .tensors import Note, describe, read, tensor_health

__all__ = [
    'Fit',
    'Note',
    'check_fit',
    'describe',
    'feature_health',
    'filled_by_mmengine',
    'groups',
    'read',
    'read_config',
    'stock_lines',
    'tensor_health',
]
