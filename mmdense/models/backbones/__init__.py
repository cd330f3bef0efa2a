# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .dino_vit import DINOViT
from .mae_vit import MAEViT
from .mocov3_vit import ConvStem, MoCoV3ViT

__all__ = ['ConvStem', 'DINOViT', 'MAEViT', 'MoCoV3ViT']
