# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.utils import in_float32
from mmdense.utils.errors import InputError


@in_float32
def pair_contrast(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrast the pairs of each image: the other outputs of the same image are negatives.

    SimCLR's loss (https://arxiv.org/abs/2002.05709), equation 1, of the Q pairs of one image: the
    mean over its 2Q rows, each against the 2Q − 1 others. Pair DETR
    (https://arxiv.org/abs/2210.16476) contrasts the outputs of its two decoders.

    Args:
        first (Tensor): N×Q×C, outputs of one decoder, not normalised.
        second (Tensor): N×Q×C, outputs of the other decoder; query i is the pair of query i.
        temperature (float): τ, above 0. Defaults to 0.1.

    Returns:
        Tensor: The mean over images, a scalar; 0 for Q = 1, which has no negative.
    """
    if first.dim() != 3 or first.shape != second.shape:
        raise InputError(
            f'pair_contrast takes N×Q×C twice, got {tuple(first.shape)} and {tuple(second.shape)}'
        )
    first, second = (normalize(x, dim=2) / temperature**0.5 for x in (first, second))
    across = first @ second.transpose(1, 2)  # N×Q×Q
    itself = torch.eye(across.size(1), dtype=torch.bool, device=across.device)
    loss = 0
    for own, others in ((first, across), (second, across.transpose(1, 2))):
        inside = (own @ own.transpose(1, 2)).masked_fill(itself, -torch.inf)
        loss = loss + torch.cat([others, inside], dim=2).logsumexp(2).mean() / 2
    return loss - across.diagonal(dim1=1, dim2=2).mean()
