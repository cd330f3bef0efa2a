# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .lars import LARS

__all__ = ['LARS']
