# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Measure collapse, and define the thresholds."""

from typing import Any, Dict, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.utils.similarity import flatten_rows, negative_similarity, subsample_rows

Values = Dict[str, Tensor]


class ThresholdRule(NamedTuple):
    """Define when to warn of a value, and the words of the warning."""

    name: str  # the end of the value's name
    bound: float
    recovery: float  # hysteresis: the warning clears once the value crosses this
    meaning: str
    advice: str

    def is_violated(self, value: float, bound: float) -> bool:
        """Return whether a value is on the wrong side of a bound."""
        return value < bound if self.recovery > self.bound else value > bound


_COLLAPSED = (
    'collapse: features are nearly all alike (std: 0 constant, 1 spread out; rank: 1 direction)'
)

_ADVICE = (
    'Try a lower learning rate or a longer warm-up, check that the augmentation leaves something '
    'to see, and that the neck is initialised'
)

# In runs of 200 iterations of tiny networks (tests/test_engine/test_health.py) std and rank are at
# least 0.07 and 2.0 where they learn; at a hundred times the learning rate one rank at least of
# each algorithm stays below 1.75. ResNet-50 starts with 0.23 and 5.5 or more.
THRESHOLDS = [
    ThresholdRule('_std', 0.05, 0.1, _COLLAPSED, _ADVICE),
    ThresholdRule('_rank', 1.8, 2.2, _COLLAPSED, _ADVICE),
    ThresholdRule(
        'prototypes_used',
        1.5,
        2.5,
        'collapse: nearly all locations are assigned to one prototype',
        'Try a lower learning rate or a longer warm-up, a smaller center_momentum or a larger '
        'teacher_temperature',
    ),
    ThresholdRule(
        'without_positive',
        0.5,
        0.4,
        'most images have no positive pair, and teach nothing',
        "Raise the lower end of crop_ratio_range, or the head's pos_ratio",
    ),
]


def spread(x: Tensor) -> Values:
    """Return how features are spread.

    Args:
        x (Tensor): M×C, normalised.

    Returns:
        Dict[str, Tensor]: ``std`` in [0, 1] and ``rank`` in [1, min(M, C)], as
        in :class:`HealthMonitorHook`; NaN where a feature is not finite.
    """
    x = subsample_rows(x).double()
    finite = x.isfinite().all()
    x = torch.where(finite, x, 0.0)  # of NaN there are no eigenvalues
    squares = torch.linalg.eigvalsh(x.t() @ x if x.size(0) > x.size(1) else x @ x.t())
    singular = squares.clamp(min=0).sqrt()
    values = dict(
        std=x.std(0, unbiased=False).mean() * x.size(1) ** 0.5,
        rank=torch.special.entr(singular / singular.sum()).sum().exp(),
    )
    return {name: torch.where(finite, value, float('nan')) for name, value in values.items()}


def measure_features(name: str, value: Any) -> Values:
    """Return the numbers of what an algorithm probes.

    Args:
        name (str): Name of the features.
        value (Any): One of the kinds that
            :meth:`mmdense.models.selfsup.SelfSupervisor.probe` lists, but for counts.

    Returns:
        Dict[str, Tensor]: Scalars by name.
    """
    if isinstance(value, Tensor) and value.dim() == 0:
        return {name: value}
    pair = value if isinstance(value, tuple) else (value,)
    query, *keys = [normalize(_as_grid(x).float(), dim=1) for x in pair]  # NxCxS
    values = {f'{name}_{key}': x for key, x in spread(flatten_rows(query)).items()}
    for key in keys:
        values[f'{name}_positive_similarity'] = (query * key).sum(1).mean()
        values[f'{name}_negative_similarity'] = negative_similarity(query, key)
    return values


def measure_usage(name: str, counts: Tensor) -> Values:
    """Return how many prototypes are used.

    Args:
        name (str): Name of the prototypes.
        counts (Tensor): P, how often each was used.

    Returns:
        Dict[str, Tensor]: ``NAME_used``, the exponential of the entropy of the shares, in
        [1, P], and ``NAME_dead``, the share of prototypes that get less than a hundredth of
        an equal part.
    """
    share = counts.double() / counts.sum()
    return {
        f'{name}_used': torch.special.entr(share).sum().exp(),
        f'{name}_dead': (share < 0.01 / len(counts)).double().mean(),
    }


def _as_grid(x: Tensor) -> Tensor:
    """Reshape N×C, N×C×S or N×C×H×W to N×C×S."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
