# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Relate pixels to groups, such as prototypes, by scores on a coarser grid."""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def best_groups(scores: Tensor, size: Tuple[int, int]) -> Tuple[Tensor, Tensor]:
    """Upsample scores bilinearly, and return the best group of every pixel.

    Args:
        scores (Tensor): N×P×h×w.
        size (tuple[int, int]): H and W.

    Returns:
        tuple[Tensor, Tensor]: N×H×W: the groups, in [0, P), the first
        where several are equal; and their scores.
    """
    best = labels = None
    # A part at a time: N×P×H×W at once would be gigabytes with 2048 prototypes.
    for start in range(0, scores.shape[1], 64):
        part = scores[:, start : start + 64].float()
        value, index = interpolate(part, tuple(size), mode='bilinear').max(dim=1)
        if best is None:
            best, labels = value, index
        else:
            better = value > best
            best = torch.where(better, value, best)
            labels = torch.where(better, index + start, labels)
    return labels, best


def count_nearest(scores: Tensor) -> Tensor:
    """Count the samples whose score is the largest, for each of P prototypes.

    Args:
        scores (Tensor): …×P.

    Returns:
        Tensor: P, int64.
    """
    best = scores.argmax(-1).flatten()
    # bincount would ask the device for the largest
    return best.new_zeros(scores.size(-1)).scatter_add_(0, best, torch.ones_like(best))
