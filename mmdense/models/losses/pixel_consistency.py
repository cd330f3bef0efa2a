# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor

from mmdense.models.utils import in_float32


@in_float32
def pixel_consistency(query: Tensor, key: Tensor, positive: Tensor) -> Tensor:
    r"""Make locations that show the same place alike.

    PixPro (https://arxiv.org/abs/2011.10043), equation 5, one direction:

    .. math:: -2 \cdot \frac{1}{N} \sum_n \frac{\sum_{ij \in P_n}
              \langle q_{ni}, k_{nj} \rangle}{|P_n| + 10^{-6}}

    (The published code has the factor 2.) An image without a positive pair
    counts as 0 in the mean.

    Args:
        query (Tensor): N×C×S, normalised over C.
        key (Tensor): N×C×T, normalised over C.
        positive (Tensor): N×S×T, bool: the pairs P.

    Returns:
        Tensor: A scalar in [−2, 2].
    """
    similarity = torch.bmm(query.transpose(1, 2), key)  # NxSxT
    total = torch.where(positive, similarity, 0).sum((1, 2))
    number = positive.sum((1, 2))
    return -2 * (total / (number + 1e-6)).mean()
