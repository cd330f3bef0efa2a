# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .mae_vit import MAEViT

__all__ = ['MAEViT']
