# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw RegionCL's rectangles so that two models, and several processes, can be compared."""

from typing import List, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank
from torch import Tensor, nn

from mmdense.models import RegionSwap, SwappedRegion

SHARE = 3  # images of a process in the generic tests


class JoinedRegions(NamedTuple):
    """A joined batch, in which each process's images have its partners and its rectangle."""

    shares: List[SwappedRegion]
    sizes: List[int]
    mask: Tensor
    partner: Tensor

    def mix(self, images):
        parts = images.split(self.sizes)
        return torch.cat([share.mix(part) for share, part in zip(self.shares, parts)])

    pool = SwappedRegion.pool


def draw_by_process(model):
    """Draw the rectangle of a process by its rank, the same in each step; a joined batch has the
    partners and the rectangles of several processes."""
    swap = model.swap

    def draw(images, grid):
        shares = max(len(images) // SHARE, 1)
        sizes = [SHARE] * (shares - 1) + [len(images) - SHARE * (shares - 1)]
        regions, state = [], np.random.get_state()
        for i, part in enumerate(images.split(sizes)):
            np.random.seed(get_rank() + i)
            regions.append(RegionSwap.draw(swap, part, grid))
        np.random.set_state(state)
        if shares == 1:
            return regions[0]
        masks = [r.mask.expand(n, -1, -1, -1) for r, n in zip(regions, sizes)]
        partners = [r.partner + SHARE * i for i, r in enumerate(regions)]
        return JoinedRegions(regions, sizes, torch.cat(masks), torch.cat(partners))

    swap.draw = draw


class InOrder(nn.Module):
    """A backbone whose maps are known, one for each call; it keeps what it was given."""

    def __init__(self, *maps):
        super().__init__()
        self.maps, self.seen = list(maps), []

    def forward(self, x):
        self.seen.append(x)
        return (self.maps[len(self.seen) - 1],)


def use_region(model, cells, partner=None):
    """Let a model draw a rectangle that is given in locations of the map."""
    from mmdense.models import mask_region

    def draw(images, grid):
        cell = images.size(3) // grid[1]
        mask = mask_region(cells, grid, images.device)
        order = torch.arange(len(images)).flip(0)
        return SwappedRegion(tuple(cell * c for c in cells), mask, order)

    model.swap.draw = draw
