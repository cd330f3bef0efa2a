# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import get_rank
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmdense.models.utils import gather_with_gradient, in_float32
from mmdense.utils.errors import InputError


@in_float32
def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Return the NT-Xent loss of two views: every other image of the batch is a negative.

    SimCLR (https://arxiv.org/abs/2002.05709), equation 1, summed over the two directions as in
    the published code: twice the mean over the 2N rows. With several processes the negatives are
    the images of all of them, and gradients flow to all: the mean of the processes' losses, and
    DistributedDataParallel's gradient, are those of one process with the joined batch.

    Args:
        first (Tensor): N×C, normalised: the first view of each image.
        second (Tensor): N×C, normalised: the second view. N is the same in every process.
        temperature (float): τ, above 0. Defaults to 0.1.

    Returns:
        Tensor: A scalar.
    """
    if first.dim() != 2 or first.shape != second.shape:
        raise InputError(
            f'nt_xent takes two matrices N×C, got {tuple(first.shape)} and {tuple(second.shape)}'
        )
    number = len(first)
    # of all processes: (N·W)×C
    all_first, all_second = gather_with_gradient(torch.cat([first, second], 1)).chunk(2, 1)
    own = torch.arange(number, device=first.device) + number * get_rank()
    columns = torch.arange(len(all_first), device=first.device)
    itself = own[:, None] == columns  # Nx(N·W)
    loss = 0
    for query, keys, others in (
        (first, all_second, all_first),
        (second, all_first, all_second),
    ):
        positive_and_negatives = query @ keys.t()  # Nx(N·W)
        negatives = (query @ others.t()).masked_fill(itself, -torch.inf)
        logits = torch.cat([positive_and_negatives, negatives], 1) / temperature
        loss = loss + cross_entropy(logits, own)
    return loss
