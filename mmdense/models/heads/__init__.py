# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .info_nce_head import InfoNCEHead

__all__ = ['InfoNCEHead']
