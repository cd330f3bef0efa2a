# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .box_curriculum import BoxCurriculum, hardest_copies
from .feature_queue import FeatureQueue, push_batch, read_batches
from .frozen_teacher import FrozenTeacher
from .key_queue import KeyQueue, enqueue, unflatten_queues
from .momentum_encoder import MomentumEncoder
from .region_swap import RegionSwap, SwappedRegion, mask_region, place_region
from .regions import (
    SharedRegions,
    find_shared_regions,
    pool_boxes,
    pool_masks,
    pool_pyramid,
    pyramid_levels,
    stack_proposals,
)
from .res_layer_extra_norm import ResLayerExtraNorm
from .semantic_grouping import SemanticGrouping
from .teacher_center import TeacherCenter

__all__ = [
    'BoxCurriculum',
    'FeatureQueue',
    'FrozenTeacher',
    'KeyQueue',
    'MomentumEncoder',
    'RegionSwap',
    'ResLayerExtraNorm',
    'SemanticGrouping',
    'SharedRegions',
    'SwappedRegion',
    'TeacherCenter',
    'enqueue',
    'find_shared_regions',
    'hardest_copies',
    'mask_region',
    'place_region',
    'pool_boxes',
    'pool_masks',
    'pool_pyramid',
    'push_batch',
    'pyramid_levels',
    'read_batches',
    'stack_proposals',
    'unflatten_queues',
]
