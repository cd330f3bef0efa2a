# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import all_gather, get_rank
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mmdense.models.utils import in_float32
from mmdense.utils.errors import InputError


@in_float32
def batch_info_nce(query: Tensor, key: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the InfoNCE loss of queries whose negatives are the other keys of the batch.

    MoCo v3 (https://arxiv.org/abs/2104.02057), equation 1, without its factor 2τ. The keys are
    those of all processes, in their order.

    Args:
        query (Tensor): N×C, of any length.
        key (Tensor): N×C, of any length, the positives; constants. N is the same in every process.
        temperature (float): τ, above 0. Defaults to 1.0.

    Returns:
        Tensor: A scalar, the mean over the N queries.
    """
    if query.dim() != 2 or query.shape != key.shape:
        raise InputError(
            f'batch_info_nce takes two matrices N×C, got {tuple(query.shape)} and '
            f'{tuple(key.shape)}'
        )
    with torch.no_grad():
        keys = all_gather(normalize(key, dim=1))
        keys = torch.cat(keys) if len(keys) > 1 else keys[0]  # (N·W)×C
    logits = normalize(query, dim=1) @ keys.t() / temperature
    own = torch.arange(len(query), device=query.device) + len(query) * get_rank()
    return cross_entropy(logits, own)
