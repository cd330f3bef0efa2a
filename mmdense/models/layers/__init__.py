# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .feature_queue import FeatureQueue, push_batch, read_batches
from .key_queue import KeyQueue, enqueue, unflatten_queues
from .momentum_encoder import MomentumEncoder
from .region_swap import RegionSwap, SwappedRegion, mask_region, place_region
from .regions import pool_boxes, pool_masks, stack_proposals
from .res_layer_extra_norm import ResLayerExtraNorm
from .semantic_grouping import SemanticGrouping
from .teacher_center import TeacherCenter

__all__ = [
    'FeatureQueue',
    'KeyQueue',
    'MomentumEncoder',
    'RegionSwap',
    'ResLayerExtraNorm',
    'SemanticGrouping',
    'SwappedRegion',
    'TeacherCenter',
    'enqueue',
    'mask_region',
    'place_region',
    'pool_boxes',
    'pool_masks',
    'push_batch',
    'read_batches',
    'stack_proposals',
    'unflatten_queues',
]
