# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Losses: pure functions of tensors, without state."""

from .info_nce import info_nce

__all__ = ['info_nce']
