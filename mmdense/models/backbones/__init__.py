# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .mae_vit import MAEViT
from .mocov3_vit import ConvStem, MoCoV3ViT

__all__ = ['ConvStem', 'MAEViT', 'MoCoV3ViT']
