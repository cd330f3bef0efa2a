# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .correspondence import gather_cells, match_cells
from .float32 import in_float32
from .gather import gather_rows
from .geometry import (
    align_maps,
    cell_centres,
    cell_distances,
    from_view,
    is_flipped,
    overlap_in_view,
    to_view,
    view_boxes,
)
from .key_queue import KeyQueue, enqueue, unflatten_queues
from .map_channels import map_channels
from .momentum_encoder import MomentumEncoder
from .patches import split_patches
from .shuffled_bn import shuffled_forward
from .teacher_center import TeacherCenter

__all__ = [
    'KeyQueue',
    'MomentumEncoder',
    'TeacherCenter',
    'align_maps',
    'cell_centres',
    'cell_distances',
    'enqueue',
    'from_view',
    'gather_cells',
    'gather_rows',
    'in_float32',
    'is_flipped',
    'map_channels',
    'match_cells',
    'overlap_in_view',
    'shuffled_forward',
    'split_patches',
    'to_view',
    'unflatten_queues',
    'view_boxes',
]
