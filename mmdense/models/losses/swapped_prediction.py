# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Sequence

from torch import Tensor
from torch.nn.functional import log_softmax

from mmdense.models.utils import in_float32


@in_float32
def swapped_prediction(
    scores: Tensor, codes: Tensor, assigned: Sequence[int], temperature: float = 0.1
) -> Tensor:
    r"""Predict the codes of some views from all other views.

    SwAV (https://arxiv.org/abs/2006.09882), section 3.1, equation 2, and section 3.2, equation 6:
    the mean over the A assigned views a, over the V − 1 other views v and over the N images of the
    cross-entropy :math:`-\sum_p q_a^p \log \mathrm{softmax}(s_v / \tau)^p`.

    Args:
        scores (Tensor): V×N×P, similarities s of views and prototypes.
        codes (Tensor): A×N×P, the codes q; rows sum to 1. No gradient.
        assigned (Sequence[int]): Positions in V of the views that the codes are of.
        temperature (float): τ, above 0. Defaults to 0.1.

    Returns:
        Tensor: The loss, a scalar from 0.
    """
    views, images = scores.shape[:2]
    assigned, total, agreement = list(assigned), codes.sum(0), 0
    for view, s in enumerate(scores.unbind()):
        # a view predicts the codes of all but its own
        others = total - codes[assigned.index(view)] if view in assigned else total
        agreement = agreement + (others * log_softmax(s / temperature, dim=1)).sum()
    return -agreement / (len(assigned) * (views - 1) * images)
