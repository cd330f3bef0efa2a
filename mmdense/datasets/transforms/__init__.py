# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .loading import LoadImage, UnreadableImageError, decode_image
from .patches import JigsawPatches
from .views import MultiView, RandomFlip, RandomResizedCrop

__all__ = [
    'JigsawPatches',
    'LoadImage',
    'MultiView',
    'RandomFlip',
    'RandomResizedCrop',
    'UnreadableImageError',
    'decode_image',
]
