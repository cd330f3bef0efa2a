# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .collate import default_collate
from .sampler import ResumableSampler
from .transforms import (
    ColorJitter,
    GaussianBlur,
    JigsawPatches,
    LoadImage,
    LoadProposals,
    MultiView,
    PackInputs,
    RandomFlip,
    RandomGrayscale,
    RandomResizedCrop,
    Solarize,
    UnreadableImageError,
    decode_image,
)
from .unlabeled import UnlabeledDataset

__all__ = [
    'ColorJitter',
    'GaussianBlur',
    'JigsawPatches',
    'LoadImage',
    'LoadProposals',
    'MultiView',
    'PackInputs',
    'RandomFlip',
    'RandomGrayscale',
    'RandomResizedCrop',
    'ResumableSampler',
    'Solarize',
    'UnlabeledDataset',
    'UnreadableImageError',
    'decode_image',
    'default_collate',
]
