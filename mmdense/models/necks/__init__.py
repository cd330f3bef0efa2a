# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .densecl_neck import DenseCLNeck

__all__ = ['DenseCLNeck']
