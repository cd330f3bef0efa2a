# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compute losses: pure functions of tensors, without state."""

from .batch_info_nce import batch_info_nce
from .cosine import cosine_distance
from .feature_reconstruction import feature_reconstruction
from .group_distillation import group_distillation
from .info_nce import info_nce
from .intra_image_margin import intra_image_margin
from .map_distillation import feature_smooth_l1, relation_distillation
from .multi_crop_distillation import multi_crop_distillation
from .negative_cosine import negative_cosine
from .nt_xent import nt_xent
from .object_embedding import object_embedding
from .pair_contrast import pair_contrast
from .pixel_consistency import pixel_consistency
from .pixel_contrast import pixel_contrast
from .region_contrast import region_contrast, region_embeddings
from .self_labelling import self_labelling
from .sinkhorn import sinkhorn
from .slot_contrast import slot_contrast
from .swapped_prediction import swapped_prediction

__all__ = [
    'batch_info_nce',
    'cosine_distance',
    'feature_reconstruction',
    'feature_smooth_l1',
    'group_distillation',
    'info_nce',
    'multi_crop_distillation',
    'intra_image_margin',
    'negative_cosine',
    'nt_xent',
    'object_embedding',
    'pair_contrast',
    'pixel_consistency',
    'pixel_contrast',
    'region_contrast',
    'region_embeddings',
    'relation_distillation',
    'self_labelling',
    'sinkhorn',
    'slot_contrast',
    'swapped_prediction',
]
