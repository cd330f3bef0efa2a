# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .linear_warmup import LinearWarmupLR
from .warmup_cosine import WarmupCosineLR

__all__ = ['LinearWarmupLR', 'WarmupCosineLR']
