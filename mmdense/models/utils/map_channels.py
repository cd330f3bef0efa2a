# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple

import torch
from torch import nn

from mmdense.utils.errors import InputError


def input_channels(network: nn.Module) -> Optional[int]:
    """Return the channels of the images that a network takes, by its first convolution; None
    without one."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return first and first.in_channels


@torch.no_grad()
def map_channels(backbone: nn.Module, size: int = 64) -> Tuple[int, ...]:
    """Infer the channels of each map of a backbone by a trial run.

    Args:
        backbone (nn.Module): Returns one or more maps; is left as it was.
        size (int): Side of the image that it is tried on. Defaults to 64.

    Returns:
        Tuple[int, ...]: One number a map.

    Raises:
        InputError: When it returns no maps N×C×H×W.
    """
    training = [module.training for module in backbone.modules()]
    parameter = next(backbone.parameters())
    backbone.eval()  # BatchNorm's statistics stay as they are
    maps = backbone(parameter.new_zeros(1, input_channels(backbone) or 3, size, size))
    for module, mode in zip(backbone.modules(), training):
        module.training = mode
    maps = maps if isinstance(maps, (list, tuple)) else (maps,)
    if any(x.dim() != 4 for x in maps):
        raise InputError(
            f'{type(backbone).__name__} returns {[tuple(x.shape) for x in maps]}, and not feature '
            'maps N×C×H×W: set its out_indices and what else it needs to return maps'
        )
    return tuple(x.size(1) for x in maps)
