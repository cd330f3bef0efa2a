# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the images whose regions are swapped, as an algorithm with RegionSwap sees them."""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure

from mmdense.models.layers import RegionSwap
from mmdense.utils.randomness import seeded

from .slots import _grid, _saved, _short_name

_RECTANGLE = (255, 200, 0)
_LOCATIONS = (0, 230, 255)


class MixedView(NamedTuple):
    """Hold a view with the region of another image.

    Attributes:
        picture (np.ndarray): H×W×3 uint8, RGB, with the rectangle and the pooled locations.
        partner (int): Index of the other image.
    """

    picture: np.ndarray
    partner: int


def mix_views(
    views: Sequence[np.ndarray], grid: Tuple[int, int], swap: RegionSwap, seed: int = 0
) -> List[MixedView]:
    """Swap a rectangle between views, and paint where it is and what is pooled.

    Args:
        views (Sequence[np.ndarray]): Two or more, each H×W×3 uint8, RGB, of one size.
        grid (tuple[int, int]): Rows and columns of the backbone's map of a view.
        swap (RegionSwap): Draws the rectangle.
        seed (int): Seed of the rectangle.

    Returns:
        List[MixedView]: One for each view, cut at the right and below to whole grid cells.
    """
    cell_y, cell_x = (side // cells for side, cells in zip(views[0].shape, grid))
    images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    images = images[:, :, : cell_y * grid[0], : cell_x * grid[1]]
    with seeded(seed):
        region = swap.draw(images, grid)
    pictures = region.mix(images).permute(0, 2, 3, 1).numpy()
    inside = region.mask[0, 0].repeat_interleave(cell_y, 0).repeat_interleave(cell_x, 1).numpy()
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    lines = inside & ((rows % cell_y == 0) | (columns % cell_x == 0))
    # and at the right and below
    lines[:-1, :-1] |= inside[:-1, :-1] & ~(inside[1:, :-1] & inside[:-1, 1:])
    x, y, width, height = region.pixels
    edge = max(2, len(inside) // 90)
    frame = np.zeros_like(inside)
    frame[y : y + height, x : x + width] = True
    frame[y + edge : y + height - edge, x + edge : x + width - edge] = False
    result = []
    for picture, partner in zip(pictures, region.partner.tolist()):
        picture = picture.copy()
        picture[lines] = _LOCATIONS
        picture[frame] = _RECTANGLE
        result.append(MixedView(picture, partner))
    return result


def draw_mixed_views(
    views: Sequence[np.ndarray],
    mixed: Sequence[MixedView],
    names: Sequence[str],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw each view, and next to it the same view with the region of another image.

    Args:
        views (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        mixed (Sequence[MixedView]): Of :func:`mix_views`.
        names (Sequence[str]): Paths of the images.
        title (str): Title of the figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    rows = -(-len(views) // 2)
    figure, axes = _grid(rows, 4, 11.0, 3.0 * rows + 0.8, title)
    for axis in axes.flat[2 * len(views) :]:
        axis.axis('off')
    for view, one, name, plain, other in zip(views, mixed, names, axes.flat[::2], axes.flat[1::2]):
        plain.imshow(view)
        plain.set_title(_short_name(name), fontsize=10)
        other.imshow(one.picture)
        other.set_title(f'with {_short_name(names[one.partner])}', fontsize=10)
    return _saved(figure, path)
