# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor

from mmdense.models.utils import in_float32


@in_float32
def pixel_contrast(
    query: Tensor, key: Tensor, positive: Tensor, temperature: float = 0.3
) -> Tensor:
    r"""Return the InfoNCE between the locations of two views of one image.

    PixContrast (https://arxiv.org/abs/2011.10043), equation 2, one direction:

    .. math:: L_i = -\log \frac{\sum_{j \in P_i} e^{\langle q_i, k_j \rangle / \tau}}
              {\sum_{j} e^{\langle q_i, k_j \rangle / \tau}}

    where :math:`P_i` are the locations of the other view that show the same place
    as location i, and the other locations of that view are its negatives. Mean over the
    locations of an image that have a positive (those in the intersection of the
    views), then over images; an image without one counts as 0.

    Args:
        query (Tensor): N×C×S, normalised over C.
        key (Tensor): N×C×T, normalised over C.
        positive (Tensor): N×S×T, bool.
        temperature (float): τ, above 0. Defaults to 0.3, the paper's.

    Returns:
        Tensor: A scalar of at least 0.
    """
    logits = torch.bmm(query.transpose(1, 2), key) / temperature  # NxSxT
    # A finite floor and not −∞: locations without a positive are left out below, and their gradient
    # must not be NaN.
    among_positives = logits.masked_fill(~positive, torch.finfo(logits.dtype).min)
    loss = logits.logsumexp(2) - among_positives.logsumexp(2)  # NxS
    has_positive = positive.any(2)
    loss = torch.where(has_positive, loss, 0).sum(1) / has_positive.sum(1).clamp(min=1)
    return loss.mean()
