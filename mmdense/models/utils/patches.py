# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from torch import Tensor

from mmdense.utils.errors import InputError


def split_patches(strips: Tensor, grid: int) -> Tensor:
    """Split the strips that :class:`~mmdense.datasets.JigsawPatches` makes.

    Args:
        strips (Tensor): N×C×P×(grid²·P), patches of P×P side by side.
        grid (int): Cells along each side of the image.

    Returns:
        Tensor: (N·grid²)×C×P×P, image by image: row n·grid² + k is the k-th
        patch from the left of image n.

    Raises:
        InputError: ``strips`` is not of this shape.
    """
    number = grid**2
    if strips.ndim != 4 or strips.shape[3] != number * strips.shape[2]:
        raise InputError(
            f'expected strips of {number} square patches, N x C x P x {number}P, got '
            f'{" x ".join(map(str, strips.shape))}; grid={grid} must be that of JigsawPatches, '
            'whose views come last'
        )
    return strips.unflatten(3, (number, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
