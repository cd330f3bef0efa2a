# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from .correspondence import (
    Matches,
    Panel,
    cut_view,
    draw_correspondence,
    match_errors,
    match_views,
    true_places,
)

__all__ = [
    'Matches',
    'Panel',
    'cut_view',
    'draw_correspondence',
    'match_errors',
    'match_views',
    'true_places',
]
