# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Swap a rectangle between the images of a batch, and pool maps inside and outside of it."""

from typing import NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_fractions
from mmdense.utils.errors import InputError

from .regions import pool_masks


class SwappedRegion(NamedTuple):
    """Hold the rectangle of a batch, and the image that each mixed image shows in it.

    Attributes:
        pixels (tuple[int, int, int, int]): The rectangle, (x, y, width, height) in pixels.
        mask (Tensor): 1×1×H×W bool, True for the locations of a map that are pooled as the pasted
            region.
        partner (Tensor): N indices, of the image that a mixed image shows in the rectangle.
    """

    pixels: Tuple[int, int, int, int]
    mask: Tensor
    partner: Tensor

    def mix(self, images: Tensor) -> Tensor:
        """Return the images with the rectangle of their partners.

        Args:
            images (Tensor): N×C×H×W.

        Returns:
            Tensor: N×C×H×W, in the same memory format.
        """
        x, y, width, height = self.pixels
        rows, columns = slice(y, y + height), slice(x, x + width)
        mixed = images.clone()
        mixed[..., rows, columns] = images[..., rows, columns][self.partner]
        return mixed

    def pool(self, maps: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the means of the maps of mixed images outside and inside of the rectangle.

        Args:
            maps (Tensor): N×C×H×W.

        Returns:
            tuple[Tensor, Tensor]: N×C float32, the canvas, which shows image b itself; and N×C
            float32, the pasted region, which shows the partner of image b.
        """
        masks = torch.cat([~self.mask, self.mask], dim=1).expand(len(maps), -1, -1, -1)
        canvas, paste = pool_masks(maps, masks)[0].unbind(1)
        return canvas, paste


@MODELS.register_module()
class RegionSwap(nn.Module):
    """Draw a rectangle that the images of a batch swap with each other (RegionCL).

    `RegionCL: Can Simple Region Swapping Contribute to Contrastive Learning?
    <https://arxiv.org/abs/2111.12309>`_ (ECCV 2022). All images of a batch have the same
    rectangle, and image b swaps with image N − 1 − b, as in the authors' code. Each process draws
    a rectangle of its own. A grid cell is the part of an image that a location of the map stands
    for. The draws are those of the authors' code at 7×7 locations: width and height are 3 to 5
    grid cells, and the start is a pixel of the image, rounded to a grid cell.

    Their code then keeps the rectangle one pixel more than necessary off the right and the lower
    border, and pools from the grid cell in which the rectangle starts. At 224 px it pools grid
    cells that the rectangle leaves by 31 px on at least one axis in 87 % of the steps. The default
    rule, ours, moves the rectangle to whole grid cells instead.

    Args:
        min_share (float): Smallest width and height, as a share of the map's side; rounded to
            grid cells. For maps of another size than 7×7 this is ours. Defaults to 3 / 7.
        max_share (float): Largest width and height. Defaults to 5 / 7. Both are at most one grid
            cell less than the side, so that a canvas is left (ours).
        aligned (bool): Whether the rectangle covers whole grid cells (ours). False: the rule of
            the authors' code. Defaults to True.
    """

    def __init__(
        self, min_share: float = 3 / 7, max_share: float = 5 / 7, aligned: bool = True
    ) -> None:
        super().__init__()
        check_fractions(min_share=min_share, max_share=max_share)
        if min_share > max_share:
            raise InputError(f'min_share={min_share} must be at most max_share={max_share}')
        self.min_share, self.max_share, self.aligned = min_share, max_share, aligned

    def draw(self, images: Tensor, grid: Tuple[int, int]) -> SwappedRegion:
        """Draw the rectangle of a batch, on the host.

        Args:
            images (Tensor): N×C×H×W, N at least 2.
            grid (tuple[int, int]): Rows and columns of the backbone's map, at least 2 each; they
                divide H and W.

        Raises:
            InputError: When N is 1, or the grid is too small or does not divide the image.
        """
        number, (height, width) = len(images), images.shape[2:]
        if number < 2:
            raise InputError(
                'images swap regions with other images: the batch of each process needs at least '
                f'2, got {number}'
            )
        if min(grid) < 2 or height % grid[0] or width % grid[1]:
            raise InputError(
                f'swapped regions need a map of at least 2×2 whose sides divide those of the views,'
                f' got {grid[0]}×{grid[1]} of views of {height}×{width} px: set the scale of '
                "RandomResizedCrop to a multiple of the backbone's stride, twice it or more"
            )
        size_x, size_y = self._draw_size(grid[1]), self._draw_size(grid[0])
        start_x, start_y = np.random.randint(width), np.random.randint(height)
        x, cell_x = place_region(start_x, size_x, width, grid[1], self.aligned)
        y, cell_y = place_region(start_y, size_y, height, grid[0], self.aligned)
        return SwappedRegion(
            (x, y, size_x * width // grid[1], size_y * height // grid[0]),
            mask_region((cell_x, cell_y, size_x, size_y), grid, images.device),
            torch.arange(number - 1, -1, -1, device=images.device),
        )

    def _draw_size(self, cells: int) -> int:
        """Draw the grid cells of one side of the rectangle."""
        low, high = (
            min(max(round(cells * share), 1), cells - 1)
            for share in (self.min_share, self.max_share)
        )
        return np.random.randint(low, high + 1)

    def extra_repr(self) -> str:
        return f'{self.min_share:.3g} to {self.max_share:.3g}, aligned={self.aligned}'


def place_region(
    start: int, size: int, pixels: int, cells: int, aligned: bool = True
) -> Tuple[int, int]:
    """Return where a rectangle begins on one axis.

    Args:
        start (int): The pixel that was drawn.
        size (int): Grid cells of the rectangle.
        pixels (int): Side of the image, a multiple of ``cells``.
        cells (int): Locations of the map along that side.
        aligned (bool): As in :class:`RegionSwap`.

    Returns:
        tuple[int, int]: The first pixel, and the first location that is pooled as pasted.
    """
    cell = pixels // cells
    nearest = round(start / cell)
    if aligned:
        first = min(nearest, cells - size)
        return first * cell, first
    first_pixel = min(nearest * cell, pixels - 1 - size * cell)
    return first_pixel, first_pixel // cell


def mask_region(
    cells: Tuple[int, int, int, int], grid: Tuple[int, int], device: torch.device
) -> Tensor:
    """Return the locations of a map that are inside of a rectangle.

    Args:
        cells (tuple[int, int, int, int]): (x, y, width, height) in locations.
        grid (tuple[int, int]): Rows H and columns W of the map.
        device (torch.device): Of the result.

    Returns:
        Tensor: 1×1×H×W, bool.
    """
    x, y, width, height = cells
    rows, columns = (torch.arange(n, device=device) for n in grid)
    inside_y = (rows >= y) & (rows < y + height)
    inside_x = (columns >= x) & (columns < x + width)
    return (inside_y[:, None] & inside_x)[None, None]
