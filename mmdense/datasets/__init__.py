# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .coco_stuff27 import CocoStuff27
from .collate import default_collate, pad_collate
from .listed_imagenet import ListedImageNet
from .random_subset import random_subset
from .sampler import ResumableSampler
from .seeded import SeededDataset
from .transforms import (
    ColorJitter,
    CropProposal,
    GaussianBlur,
    JigsawPatches,
    LoadImage,
    LoadProposals,
    MultiView,
    PackInputs,
    RandomFlip,
    RandomGrayscale,
    RandomResizedCrop,
    RandomSizeCrop,
    RandomSquareCrop,
    ResizeShortSide,
    Solarize,
    UnreadableImageError,
    decode_image,
)
from .unlabeled import UnlabeledDataset

__all__ = [
    'CocoStuff27',
    'ColorJitter',
    'CropProposal',
    'GaussianBlur',
    'JigsawPatches',
    'ListedImageNet',
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
    'ResumableSampler',
    'SeededDataset',
    'Solarize',
    'UnlabeledDataset',
    'UnreadableImageError',
    'decode_image',
    'default_collate',
    'pad_collate',
    'random_subset',
]
