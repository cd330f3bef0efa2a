# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .collate import default_collate
from .transforms import (
    JigsawPatches,
    LoadImage,
    MultiView,
    RandomFlip,
    RandomResizedCrop,
    UnreadableImageError,
    decode_image,
)
from .unlabeled import UnlabeledDataset

__all__ = [
    'JigsawPatches',
    'LoadImage',
    'MultiView',
    'RandomFlip',
    'RandomResizedCrop',
    'UnlabeledDataset',
    'UnreadableImageError',
    'decode_image',
    'default_collate',
]
