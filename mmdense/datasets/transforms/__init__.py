# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .batched import apply_batch
from .formatting import PackInputs
from .loading import LoadImage, UnreadableImageError, decode_image
from .patches import JigsawPatches
from .photometric import (
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
    Solarize,
    apply_operation,
)
from .proposals import LoadProposals
from .resize import CropProposal, RandomSizeCrop, ResizeShortSide
from .views import MultiView, RandomFlip, RandomResizedCrop, RandomSquareCrop

__all__ = [
    'ColorJitter',
    'CropProposal',
    'GaussianBlur',
    'JigsawPatches',
    'LoadImage',
    'LoadProposals',
    'MultiView',
    'PackInputs',
    'RandomFlip',
    'RandomGrayscale',
    'RandomResizedCrop',
    'RandomSizeCrop',
    'RandomSquareCrop',
    'ResizeShortSide',
    'Solarize',
    'UnreadableImageError',
    'apply_batch',
    'apply_operation',
    'decode_image',
]
