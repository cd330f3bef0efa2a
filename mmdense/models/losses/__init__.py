# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compute losses: pure functions of tensors, without state."""

from .group_distillation import group_distillation
from .info_nce import info_nce
from .pixel_consistency import pixel_consistency
from .pixel_contrast import pixel_contrast
from .slot_contrast import slot_contrast

__all__ = [
    'group_distillation',
    'info_nce',
    'pixel_consistency',
    'pixel_contrast',
    'slot_contrast',
]
