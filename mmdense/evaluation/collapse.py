# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil, log
from typing import Dict, NamedTuple

import torch
from torch import Tensor

Values = Dict[str, Tensor]

_ROWS = 1024  # of features, of which statistics are taken


class _Sign(NamedTuple):
    """When to warn of a value, and in which words."""

    name: str  # what the value's name ends with
    bound: float
    over: float  # where what was warned of is over: above the bound for values that get too low
    meaning: str
    advice: str

    def beyond(self, value: float, bound: float) -> bool:
        return value < bound if self.over > self.bound else value > bound


_ALIKE = (
    'collapse: features are nearly all alike (std: 0 constant, 1 spread out; rank: 1 direction)'
)

_GENERAL = (
    'Try a lower learning rate or a longer warm-up, check that the augmentation leaves something '
    'to see, and that the neck is initialised'
)

# In runs of 200 iterations of tiny networks (tests/test_engine/test_health.py) std and rank are at
# least 0.07 and 2.0 where they learn; at a hundred times the learning rate one rank at least of
# each algorithm stays below 1.75. ResNet-50 starts with 0.23 and 5.5 or more.
SIGNS = [
    _Sign('_std', 0.05, 0.1, _ALIKE, _GENERAL),
    _Sign('_rank', 1.8, 2.2, _ALIKE, _GENERAL),
    _Sign(
        'prototypes_used',
        1.5,
        2.5,
        'collapse: nearly all cells are assigned to one prototype',
        'Try a lower learning rate or a longer warm-up, a smaller center_momentum or a larger '
        'teacher_temperature',
    ),
    _Sign(
        'without_positive',
        0.5,
        0.4,
        'most images have no positive pair, and teach nothing',
        "Raise the lower end of crop_ratio_range, or the head's pos_ratio",
    ),
]


def _some(x: Tensor) -> Tensor:
    """Of many rows some, from all over."""
    return x[:: max(ceil(len(x) / _ROWS), 1)]


def _negatives(query: Tensor, key: Tensor, per_image: int) -> Tensor:
    """Mean cosine of rows of different images; NaN when there is one image."""
    image = _some(torch.arange(len(query), device=query.device) // per_image)
    return (_some(query) @ _some(key).t())[image[:, None] != image].mean()


def spread(x: Tensor) -> Values:
    """How features are spread.

    Args:
        x (Tensor): M×C, normalised.

    Returns:
        Dict[str, Tensor]: ``std`` in [0, 1] and ``rank`` in [1, min(M, C)], as
        in :class:`HealthMonitorHook`; NaN where a feature is not finite.
    """
    x = _some(x).double()
    finite = x.isfinite().all()
    x = torch.where(finite, x, 0.0)  # of NaN there are no eigenvalues
    squares = torch.linalg.eigvalsh(x.t() @ x if x.size(0) > x.size(1) else x @ x.t())
    singular = squares.clamp(min=0).sqrt()
    values = dict(
        std=x.std(0, unbiased=False).mean() * x.size(1) ** 0.5,
        rank=torch.special.entr(singular / singular.sum()).sum().exp(),
    )
    return {name: torch.where(finite, value, float('nan')) for name, value in values.items()}


def match_entropy(match: Tensor) -> Tensor:
    """Entropy of what the cells of an image are matched with, over its largest value.

    Args:
        match (Tensor): N×S, indices.

    Returns:
        Tensor: A scalar in [0, 1], the mean over images; NaN for S = 1.
    """
    if match.size(1) == 1:
        return torch.full((), float('nan'), device=match.device)
    # each cell's share, so that the mean over cells is the sum over what they are matched with
    share = (match[:, :, None] == match[:, None]).double().mean(2)  # NxS
    return -share.log().mean() / log(match.size(1))
