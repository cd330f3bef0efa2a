# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .dino_vit import DINOViT
from .efficientnet_lite import EfficientNetLite
from .mae_vit import MAEViT
from .mocov3_vit import ConvStem, MoCoV3ViT
from .register_vit import RegisterViT

__all__ = ['ConvStem', 'DINOViT', 'EfficientNetLite', 'MAEViT', 'MoCoV3ViT', 'RegisterViT']
