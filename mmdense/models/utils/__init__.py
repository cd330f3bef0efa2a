# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .batch_norm import calibrate
from .correspondence import gather_locations, match_locations
from .feature_search import search_features
from .float32 import in_float32
from .gather import gather_rows, gather_with_gradient
from .geometry import (
    align_maps,
    box_iou,
    boxes_in_view,
    boxes_on_grid,
    from_view,
    grid_centers,
    grid_distances,
    is_flipped,
    match_by_boxes,
    overlap_in_view,
    to_view,
    view_boxes,
    views_overlap,
    visible_share,
)
from .groups import best_groups, count_nearest
from .map_channels import input_channels, map_channels
from .patches import split_patches
from .position_embedding import sincos_positions
from .shuffled_bn import encoded_rows, shuffled_forward
from .similarity import match_entropy, negative_similarity
from .unit_vectors import unit_vectors

__all__ = [
    'align_maps',
    'best_groups',
    'box_iou',
    'boxes_in_view',
    'boxes_on_grid',
    'calibrate',
    'count_nearest',
    'encoded_rows',
    'grid_centers',
    'grid_distances',
    'from_view',
    'gather_locations',
    'gather_rows',
    'gather_with_gradient',
    'in_float32',
    'is_flipped',
    'input_channels',
    'map_channels',
    'match_by_boxes',
    'match_locations',
    'match_entropy',
    'negative_similarity',
    'overlap_in_view',
    'search_features',
    'shuffled_forward',
    'sincos_positions',
    'split_patches',
    'to_view',
    'view_boxes',
    'views_overlap',
    'visible_share',
    'unit_vectors',
]
