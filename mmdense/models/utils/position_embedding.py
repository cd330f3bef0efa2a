# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor


def sincos_positions(grid: int, channels: int) -> Tensor:
    """Return the fixed position embedding of MAE's code, for a square grid of patches and a class
    token.

    With ω_j = 10000^(−j / (C / 4)), the embedding of the patch in row r and column c is
    ``[sin(cω), cos(cω), sin(rω), cos(rω)]``, the column first; that of the class token is 0.

    Args:
        grid (int): G, patches along a side.
        channels (int): C, a multiple of 4.

    Returns:
        Tensor: 1×(1 + G²)×C float32, computed in float64.
    """
    omega = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega  # GxC/4
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # GxC/2
    columns, rows = waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)  # G²xC
    return torch.cat([patches.new_zeros(1, channels), patches]).float()[None]
