# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .info_nce_head import InfoNCEHead
from .pixpro_head import InstanceConsistencyHead, PixContrastHead, PixelHead, PixProHead
from .res_layer_extra_norm import ResLayerExtraNorm
from .slot_contrast_head import SlotContrastHead, kept_slots

__all__ = [
    'InfoNCEHead',
    'InstanceConsistencyHead',
    'PixContrastHead',
    'PixProHead',
    'PixelHead',
    'ResLayerExtraNorm',
    'SlotContrastHead',
    'kept_slots',
]
