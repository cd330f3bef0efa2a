# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Shuffled patches of an image, the input of DetCo's local heads."""

from typing import List

import numpy as np
from mmcv.transforms import BaseTransform

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


@TRANSFORMS.register_module()
class JigsawPatches(BaseTransform):
    """Cut an image into grid×grid grid cells, shuffle them, crop a patch in each.

    The patch set of DetCo (ICCV 2021, https://arxiv.org/abs/2102.04803,
    section 3.4), which is that of PIRL (https://arxiv.org/abs/1912.01991): a
    255×255 image, 3×3 grid cells of 85×85, a random 64×64 patch in each. All
    (grid²)! orders are equally likely, and all places of a patch in its grid cell.

    The patches are one image, a strip from left to right, so that packing, collating and
    normalizing treat them as an image;
    :func:`~mmdense.models.utils.patches.split_patches` splits a batch of strips.

    Grid cell (i, j) of an image of H×W pixels has the rows from ⌊iH/grid⌋ up to
    ⌊(i+1)H/grid⌋, columns likewise: if the grid does not divide H, some grid
    cells are a pixel larger.

    **Required Keys:** ``img`` (np.ndarray): H×W×C; ``deferred`` (list, optional):
    if there is one, the cutting is deferred (see :class:`MultiView`).

    **Modified Keys:**

    - ``img`` (np.ndarray): patch_size × grid²·patch_size × C.
    - ``img_shape`` (tuple[int, int]): Height and width of the strip.

    **Added Keys:** ``patch_cells`` (np.ndarray): (grid²,) int, the grid cell of
    each patch of the strip, i·grid + j. mmpretrain's ``MultiView`` drops it.

    Args:
        grid (int): Grid cells along each side, at least 1. Defaults to 3.
        patch_size (int): Height and width of a patch in pixels, at least 1.
            Defaults to 64.

    Raises:
        InputError: An argument is not a whole number of at least 1; at the first
            image, grid cells are smaller than the patches.
    """

    def __init__(self, grid: int = 3, patch_size: int = 64) -> None:
        check_counts(grid=grid, patch_size=patch_size)
        self.grid = grid
        self.patch_size = patch_size

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by the strip and add ``patch_cells``."""
        img = results['img']
        height, width = img.shape[:2]
        if min(height, width) // self.grid < self.patch_size:
            least = self.grid * self.patch_size
            raise InputError(
                f'JigsawPatches: an image of {width}x{height} pixels (width x height) has no '
                f'{self.grid}x{self.grid} cells that hold patches of '
                f'{self.patch_size}x{self.patch_size}; resize it to at least {least}x{least} '
                'before, or lower grid or patch_size'
            )
        cells = np.random.permutation(self.grid**2)
        size = self.patch_size
        corners = [self._corner(img, cell) for cell in cells]
        if 'deferred' in results:  # see photometric.py
            tops, lefts = zip(*corners)
            results['deferred'].append(('jigsaw', (size, *tops, *lefts)))
        else:
            results['img'] = np.concatenate(
                [img[top : top + size, left : left + size] for top, left in corners], axis=1
            )
        results['img_shape'] = (size, size * len(cells))
        results['patch_cells'] = cells
        return results

    def _corner(self, img: np.ndarray, cell: int) -> List[int]:
        """Draw (top, left) of a random patch inside a grid cell."""
        corner = []
        for index, length in zip(divmod(cell, self.grid), img.shape):
            first, end = index * length // self.grid, (index + 1) * length // self.grid
            corner.append(np.random.randint(first, end - self.patch_size + 1))
        return corner

    def __repr__(self) -> str:
        return f'{type(self).__name__}(grid={self.grid}, patch_size={self.patch_size})'
