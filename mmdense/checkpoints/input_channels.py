# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Adapt the first convolution of a checkpoint to images of another number of channels."""

from typing import Dict, Optional

import torch
from torch import Tensor

from mmdense.utils.errors import InputError

WAYS = ('sum', 'repeat', 'mean')


def check_way(in_channels: Optional[str]) -> None:
    """Check the argument ``in_channels`` of :class:`~mmdense.checkpoints.SelfSupPretrained`.

    Raises:
        InputError: It is neither None nor one of :data:`WAYS`.
    """
    if in_channels is not None and in_channels not in WAYS:
        raise InputError(
            f"in_channels must be 'sum', 'repeat' or 'mean', the way to adapt the first "
            f'convolution, got {in_channels!r}'
        )


def adapt_weight(weight: Tensor, channels: int, way: str) -> Tensor:
    """Return the weights of a convolution for another number of input channels.

    Args:
        weight (Tensor): O×N×k×k.
        channels (int): M.
        way (str): 'sum': each of the M channels gets the sum over the N, divided by M. An image
            whose channels are equal gives what a gray image gave: the way to one channel.
            'repeat': channel i gets the weights of channel i modulo N, times N / M. 'mean': the
            first channels keep their weights, further ones get the mean of the N; with fewer than
            N each gets the mean.

    Returns:
        Tensor: O×M×k×k.
    """
    known = weight.size(1)
    if way == 'sum':
        return weight.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
    if way == 'repeat':
        return weight[:, torch.arange(channels) % known] * (known / channels)
    mean = weight.mean(1, keepdim=True)
    if channels < known:
        return mean.repeat(1, channels, 1, 1)
    return torch.cat([weight, mean.repeat(1, channels - known, 1, 1)], 1)


def find_other_input(given: Dict[str, Tensor], wanted: Dict[str, Tensor]) -> Dict[str, int]:
    """Return the convolutions whose input channels alone differ: those that take the images.

    Args:
        given (Dict[str, Tensor]): Tensors of a file, in the names of a model.
        wanted (Dict[str, Tensor]): Tensors of the model.

    Returns:
        Dict[str, int]: Name → channels in the model.
    """
    first = next((key for key, tensor in wanted.items() if tensor.dim() == 4), '')
    name = first.split('backbone.')[-1]
    found = {}
    for key, tensor in wanted.items():
        same = key == name or key.endswith(f'.{name}')
        file = given.get(key) if same and tensor.dim() == 4 else None
        if file is None or file.dim() != 4 or file.size(1) == tensor.size(1):
            continue
        if (file.size(0), *file.shape[2:]) == (tensor.size(0), *tensor.shape[2:]):
            found[key] = tensor.size(1)
    return found
