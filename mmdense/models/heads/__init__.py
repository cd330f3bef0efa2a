# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .info_nce_head import InfoNCEHead
from .pixpro_head import InstanceConsistencyHead, PixContrastHead, PixelHead, PixProHead
from .slot_contrast_head import SlotContrastHead, kept_slots

__all__ = [
    'InfoNCEHead',
    'InstanceConsistencyHead',
    'PixContrastHead',
    'PixProHead',
    'PixelHead',
    'SlotContrastHead',
    'kept_slots',
]
