# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .correspondence import (
    Matches,
    Panel,
    cut_view,
    draw_correspondence,
    draw_view_pair,
    match_errors,
    match_views,
    true_places,
)
from .levels import Stage, draw_levels, pca_colours
from .local_backend import LocalVisBackend
from .slots import draw_groups, draw_nearest, paint_groups, prototype_colours

__all__ = [
    'LocalVisBackend',
    'Matches',
    'Panel',
    'Stage',
    'cut_view',
    'draw_correspondence',
    'draw_groups',
    'draw_levels',
    'draw_nearest',
    'draw_view_pair',
    'match_errors',
    'match_views',
    'paint_groups',
    'pca_colours',
    'prototype_colours',
    'true_places',
]
