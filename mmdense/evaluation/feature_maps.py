# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.utils.errors import DataError, InputError


def read_images(paths: Sequence[str], size: int) -> List[np.ndarray]:
    """Read image files, upright, in their own aspect ratios.

    Args:
        paths (Sequence[str]): The files.
        size (int): What the longer side is scaled to, in pixels.

    Returns:
        List[np.ndarray]: Each H×W×3 uint8, RGB.

    Raises:
        DataError: When one of them cannot be read.
    """
    images = []
    for path in paths:
        try:
            image = LoadImage().transform(dict(img_path=path))['img']
        except UnreadableImageError as error:
            raise DataError(str(error)) from None
        images.append(fit_image(image, size))
    return images


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an image.

    Args:
        image (np.ndarray): H×W×3 uint8, BGR.
        size (int): What the longer side becomes, in pixels.

    Returns:
        np.ndarray: H'×W'×3 uint8, RGB.
    """
    image = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    scale = size / max(image.size)
    shape = [max(1, round(side * scale)) for side in image.size]
    return np.asarray(image.resize(shape, Image.BICUBIC))


def to_inputs(images: Sequence[np.ndarray], preprocessor: nn.Module) -> List[Tensor]:
    """Return images as a backbone takes them.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        preprocessor (nn.Module): Of :class:`Backbones`.

    Returns:
        List[Tensor]: Each 1×3×H×W.
    """
    bgr = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in images]
    return [preprocessor(dict(inputs=x[None], data_samples=None))['inputs'] for x in bgr]


@torch.no_grad()
def stage_maps(backbone: nn.Module, inputs: Sequence[Tensor]) -> List[List[Tensor]]:
    """Return the output of each stage, whatever the backbone itself returns.

    Args:
        backbone (nn.Module): Of mmpretrain: a ResNet or one that is built like
            it (``res_layers``), or one with ``stages``, such as ConvNeXt and
            Swin.
        inputs (Sequence[Tensor]): I images, each 1×3×H×W.

    Returns:
        List[List[Tensor]]: By stage, from stage 2 (the first one, in ResNet's
        numbers, whose stem is stage 1), and image: C×h×w.

    Raises:
        InputError: For backbones of other kinds, or features that are not
            finite.
    """
    stages = getattr(backbone, 'res_layers', None) or getattr(backbone, 'stages', ())
    stages = [getattr(backbone, s) if isinstance(s, str) else s for s in stages]
    if not stages:
        raise InputError(
            f'{type(backbone).__name__} is a backbone of unknown kind: it has no list of stages '
            '(res_layers or stages)'
        )
    maps = [[] for _ in stages]

    def keep(number):
        def hook(_stage, _args, out):
            if isinstance(out, tuple):  # Swin's: 1×hw×C and (h, w)
                out = out[0].transpose(1, 2).unflatten(2, tuple(out[1]))
            maps[number].append(out[0])

        return hook

    hooks = [stage.register_forward_hook(keep(i)) for i, stage in enumerate(stages)]
    try:
        for image in inputs:
            backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    for number, found in enumerate(maps, start=2):
        if not found or found[0].dim() != 3:
            raise InputError(
                f'{type(backbone).__name__} is a backbone of unknown kind: no maps from its stages'
            )
        if not all(m.isfinite().all() for m in found):
            raise InputError(
                f'features of stage {number} are not finite: the weights are damaged, or training '
                'diverged'
            )
    return maps
