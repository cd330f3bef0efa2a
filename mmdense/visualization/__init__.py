# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from importlib import import_module

from .local_backend import LocalVisBackend
from .visualizer import Visualizer

# Figures, by the module that draws them. A run imports this package for the two above, and needs
# neither matplotlib nor scipy: these are imported at their first use.
_FIGURES = {
    'correspondence': (
        'Matches',
        'Panel',
        'cut_view',
        'draw_correspondence',
        'draw_view_pair',
        'match_errors',
        'match_views',
        'true_places',
    ),
    'found_objects': ('FoundObjects', 'draw_found_objects', 'find_objects', 'paint_objects'),
    'found_patches': ('FoundPatches', 'draw_found_patches', 'find_patches', 'paint_found'),
    'levels': ('Stage', 'draw_levels', 'pca_colours'),
    'searched_crops': ('SearchedCrop', 'draw_searched_crops', 'search_crops'),
    'noisy_boxes': ('draw_noisy_boxes', 'paint_copies', 'paint_run'),
    'slots': ('draw_groups', 'draw_nearest', 'paint_groups', 'prototype_colours'),
    'swapped_regions': ('MixedView', 'draw_mixed_views', 'mix_views'),
}

__all__ = [
    'FoundObjects',
    'FoundPatches',
    'LocalVisBackend',
    'Matches',
    'MixedView',
    'Panel',
    'SearchedCrop',
    'Stage',
    'Visualizer',
    'cut_view',
    'draw_correspondence',
    'draw_found_objects',
    'draw_found_patches',
    'draw_groups',
    'draw_levels',
    'draw_mixed_views',
    'draw_nearest',
    'draw_searched_crops',
    'draw_noisy_boxes',
    'draw_view_pair',
    'find_objects',
    'find_patches',
    'match_errors',
    'match_views',
    'mix_views',
    'paint_copies',
    'paint_found',
    'paint_groups',
    'paint_objects',
    'paint_run',
    'pca_colours',
    'prototype_colours',
    'search_crops',
    'true_places',
]


def __getattr__(name: str):
    """Import a module of figures at its first use."""
    for module, names in _FIGURES.items():
        if name in names or name == module:
            found = import_module(f'.{module}', __name__)
            return found if name == module else getattr(found, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
