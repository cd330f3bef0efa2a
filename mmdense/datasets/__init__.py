# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .collate import default_collate
from .transforms import LoadImage, UnreadableImageError, decode_image
from .unlabeled import UnlabeledDataset

__all__ = [
    'LoadImage',
    'UnlabeledDataset',
    'UnreadableImageError',
    'decode_image',
    'default_collate',
]
