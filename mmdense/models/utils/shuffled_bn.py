# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Callable, Tuple

import torch
from mmengine.dist import get_world_size
from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp
from torch import Tensor


@torch.no_grad()
def shuffled_forward(encode: Callable[[Tensor], Tuple[Tensor, ...]], x: Tensor):
    """Encodes keys with BatchNorm statistics of images from all processes.

    Shuffling BN of MoCo (https://arxiv.org/abs/1911.05722, section 3.3): a key
    must not share its BatchNorm batch with its query, or the statistics give
    the answer away. With one process there is nothing to exchange and the
    batch goes in as it is.

    Args:
        encode (Callable): Maps a batch to a tuple of tensors, N first.
        x (Tensor): N×…, N the same in every process.

    Returns:
        Tuple[Tensor, ...]: What ``encode`` returns for ``x``, rows in the
        order of ``x``.
    """
    if get_world_size() == 1:
        return encode(x)
    x, order = batch_shuffle_ddp(x)
    return tuple(batch_unshuffle_ddp(y, order) for y in encode(x))
