# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .distillation_head import MapDistillationHead
from .info_nce_head import InfoNCEHead
from .nt_xent_head import NTXentHead
from .pixpro_head import (
    InstanceConsistencyHead,
    LocalContrastHead,
    PixContrastHead,
    PixelHead,
    PixProHead,
)
from .prediction_heads import CosinePredictionHead, InfoNCEPredictionHead
from .region_contrast_head import RegionContrastHead
from .slot_contrast_head import SlotContrastHead, kept_slots

__all__ = [
    'CosinePredictionHead',
    'InfoNCEHead',
    'InstanceConsistencyHead',
    'InfoNCEPredictionHead',
    'LocalContrastHead',
    'MapDistillationHead',
    'NTXentHead',
    'PixContrastHead',
    'PixProHead',
    'PixelHead',
    'RegionContrastHead',
    'SlotContrastHead',
    'kept_slots',
]
