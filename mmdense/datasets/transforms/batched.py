# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Deferred photometric operations, for a complete batch on its device.

Plain PyTorch: every image has parameters of its own, and nothing waits for the device.
docs/benchmarks.md compares it with other packages.
"""

from itertools import zip_longest
from typing import Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .photometric import COLOUR, LUMA, OF_COLORS, Operation, blur_radius, colour_matrix


@torch.no_grad()
def apply_batch(images: Tensor, operations: Sequence[Sequence[Optional[Operation]]]) -> Tensor:
    """Apply each image's operations to a batch, on its device, without waiting for it.

    Args:
        images (Tensor): N×C×H×W uint8, BGR with 3 channels.
        operations (Sequence[Sequence[Operation | None]]): N lists, each in order. They may differ
            in all but the size of their results.

    Returns:
        Tensor: N×C×H×W float32, whole numbers in 0..255.
    """
    images = images.float()
    colored = images.size(1) == 3
    for step in zip_longest(*operations):
        if not colored:
            step = [None if one and one[0] in OF_COLORS else one for one in step]
        names = {operation[0] for operation in step if operation}
        if names.intersection(COLOUR):
            images = _colours(images, step)
        for name in sorted(names.difference(COLOUR)):
            index = [i for i, operation in enumerate(step) if operation and operation[0] == name]
            values = np.array([step[i][1] for i in index], np.float32)
            function = _BATCHED[name]
            if len(index) == len(images):
                images = function(images, values)
            else:
                index = _to(index, images, torch.long)
                images = images.index_copy(0, index, function(images[index], values))
    return images


def _colours(images: Tensor, step: Sequence[Optional[Operation]]) -> Tensor:
    """Apply one step's color operations; images without one stay as they are."""
    parts = [
        colour_matrix(*operation)
        if operation and operation[0] in COLOUR
        else colour_matrix('brightness', 1.0)
        for operation in step
    ]
    # one transfer for all
    table = _to(np.stack([np.append(matrix, share) for matrix, share in parts]), images)
    if images.size(1) != 3:  # brightness and contrast: all channels alike
        factor, offset, share = (table[:, i].view(-1, 1, 1, 1) for i in (0, 3, 12))
        if any(operation and operation[0] == 'contrast' for operation in step):
            mean = images.mean((1, 2, 3), keepdim=True)
            offset = offset + share * mean.add(0.5).floor()
        return (images * factor + (offset + 1e-4)).floor_().clamp_(0, 255)
    matrix, share = table[:, :12].view(-1, 3, 4), table[:, 12]
    matrix, offset = matrix.split([3, 1], dim=2)
    if any(operation and operation[0] == 'contrast' for operation in step):
        luma = (images * _to(LUMA, images).view(3, 1, 1)).sum(1).mean((1, 2))
        offset = offset + (share * luma.add(0.5).floor()).view(-1, 1, 1)
    with torch.autocast(images.device.type, enabled=False):
        # 1e-4, as on the CPU: 0.114 + 0.587 + 0.299 may fall short of 1
        mixed = torch.baddbmm(offset + 1e-4, matrix, images.flatten(2))
    return mixed.floor_().clamp_(0, 255).view_as(images)


def _turn_hue(images: Tensor, turns: np.ndarray) -> Tensor:
    """Turn the hue in HSV; https://en.wikipedia.org/wiki/HSL_and_HSV."""
    blue, green, red = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    scale = chroma.clamp(min=1)  # 0 for grey, whose hue is 0 whatever it is divided by
    hue = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    hue = hue + _to(np.trunc(turns * 255) * (6 / 256), images).view(-1, 1, 1)
    mixed = [value - chroma * _bump(hue + n) for n in (1, 3, 5)]
    return torch.stack(mixed, 1).round_()


def _bump(hue: Tensor) -> Tensor:
    """Return the share of the chroma that a channel lacks: 0 to 1 and back, with period six."""
    hue = hue.remainder(6)
    return torch.minimum(hue, 4 - hue).clamp_(0, 1)


def _blur(images: Tensor, sigma: np.ndarray) -> Tensor:
    number, channels, height, width = images.shape
    radius = min(blur_radius(sigma.max()), height - 1, width - 1)  # mirrored once at most
    places = _to(np.arange(-radius, radius + 1), images)
    kernel = torch.exp(-0.5 * (places / _to(sigma, images).view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # every channel of every image is a group with a kernel of its own
    planes = pad(images, [radius] * 4, mode='reflect').flatten(0, 1)[None]
    with torch.autocast(images.device.type, enabled=False):
        planes = conv2d(planes, kernel[:, None, None, :], groups=number * channels)
        planes = conv2d(planes, kernel[:, None, :, None], groups=number * channels)
    return planes.view_as(images).round_()


def _solarize(images: Tensor, thr: np.ndarray) -> Tensor:
    return torch.where(images < _to(thr, images).view(-1, 1, 1, 1), images, 255 - images)


def _cut_patches(images: Tensor, values: np.ndarray) -> Tensor:
    """Cut strips of patches; each row of ``values`` is (size, *tops, *lefts) of the patches."""
    size = int(values[0, 0])
    top, left = _to(values[:, 1:], images, torch.long).view(len(values), 2, 1, -1, 1).unbind(1)
    span = torch.arange(size, device=images.device)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    # N×size×patches×size×C
    patches = images.permute(0, 2, 3, 1)[image, top + span.view(-1, 1, 1), left + span]
    return patches.permute(0, 4, 1, 2, 3).flatten(3)


_BATCHED = dict(hue=_turn_hue, blur=_blur, solarize=_solarize, jigsaw=_cut_patches)


def _to(values, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move values to the device of ``like``, without waiting for it."""
    return torch.as_tensor(values, dtype=dtype).to(like.device, non_blocking=True)
