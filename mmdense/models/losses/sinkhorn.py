# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from mmdense.models.utils import in_float32


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Assign samples to prototypes so that each prototype gets an equal share (Sinkhorn-Knopp).

    SwAV (https://arxiv.org/abs/2006.09882), section 3.1, equation 5. Sums over samples are those
    of all processes: the codes are those of the joined batch. A prototype that no sample scores
    (its column underflows) gets nothing, on all processes alike.

    Args:
        scores (Tensor): …×B×P, similarities of samples and prototypes; several matrices are
            assigned apart. B is the same in every process. A sample whose scores are all -inf
            takes no part.
        epsilon (float): Smoothness of the codes, above 0. Defaults to 0.05.
        iterations (int): Rounds, from 1. Defaults to 3.

    Returns:
        Tensor: …×B×P, the codes; each row sums to 1, or to 0 where the sample takes no part. A
        constant.
    """
    codes = torch.exp(scores / epsilon)
    prototypes, samples = codes.size(-1), codes.size(-2) * get_world_size()
    total = codes.sum((-2, -1), keepdim=True)
    all_reduce(total)
    codes = codes / total
    for _ in range(iterations):
        shares = codes.sum(-2, keepdim=True)  # of the prototypes
        all_reduce(shares)
        codes = codes / _above_zero(shares) / prototypes
        codes = codes / _above_zero(codes.sum(-1, keepdim=True)) / samples
    return codes * samples


def _above_zero(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, 1e-12, sums)
