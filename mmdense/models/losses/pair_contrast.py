# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

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
    z = normalize(torch.cat([first, second], dim=1), dim=2)  # N×2Q×C
    rows = torch.arange(z.size(1), device=z.device)
    logits = z @ z.transpose(1, 2) / temperature  # N×2Q×2Q
    logits = logits.masked_fill(rows[:, None] == rows, -torch.inf)
    pair = rows.roll(first.size(1))
    return cross_entropy(logits.flatten(0, 1), pair.repeat(len(z)))
