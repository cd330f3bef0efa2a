# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Callable, Tuple

import torch
from mmengine.dist import get_world_size
from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp
from torch import Tensor


@torch.no_grad()
def shuffled_forward(
    encode: Callable[..., Tuple[Tensor, ...]], *inputs: Tensor
) -> Tuple[Tensor, ...]:
    """Encodes keys with BatchNorm statistics of images from all processes.

    Shuffling BN of MoCo (https://arxiv.org/abs/1911.05722, section 3.3): a key
    must not share its BatchNorm batch with its query, or the statistics give
    the answer away. With one process there is nothing to exchange and the
    batch goes in as it is.

    Args:
        encode (Callable): Maps a batch to a tuple of tensors, N first.
        inputs (Tensor): One or more N×…, N the same in every process. All of
            them are shuffled alike.

    Returns:
        Tuple[Tensor, ...]: What ``encode`` returns for ``inputs``, rows in the
        order of these.
    """
    if get_world_size() == 1:
        return encode(*inputs)
    # as one tensor: one exchange, one order
    rows, order = batch_shuffle_ddp(torch.cat([x.flatten(1) for x in inputs], dim=1))
    parts = rows.split([x[0].numel() for x in inputs], dim=1)
    shuffled = [part.view_as(x) for part, x in zip(parts, inputs)]
    return tuple(batch_unshuffle_ddp(y, order) for y in encode(*shuffled))
