# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Optional, Sequence

import numpy as np
import torch
from mmpretrain.models import VisionTransformer
from PIL import Image
from torch import Tensor, nn

from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.utils.errors import DataError, InputError


def read_images(
    paths: Sequence[str], size: int, load: Optional[LoadImage] = None
) -> List[np.ndarray]:
    """Read image files, upright, in their own aspect ratios.

    Args:
        paths (Sequence[str]): The files.
        size (int): What the longer side is scaled to, in pixels.
        load (LoadImage, optional): Reads them. Defaults to ``LoadImage()``.

    Returns:
        List[np.ndarray]: Each H×W×3 uint8, RGB.

    Raises:
        DataError: When one of them cannot be read.
    """
    images = []
    for path in paths:
        try:
            image = (load or LoadImage()).transform(dict(img_path=path))['img']
        except UnreadableImageError as error:
            raise DataError(str(error)) from None
        images.append(fit_image(image, size))
    return images


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an image.

    Args:
        image (np.ndarray): H×W×C uint8, BGR with 3 channels.
        size (int): What the longer side becomes, in pixels.

    Returns:
        np.ndarray: H'×W'×C uint8, RGB with 3 channels.
    """
    scale = size / max(image.shape[:2])
    shape = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    if image.shape[2] != 3:
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, 2, 0)]
        return np.stack([np.asarray(band.resize(shape, Image.BICUBIC)) for band in bands], 2)
    image = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    return np.asarray(image.resize(shape, Image.BICUBIC))


def as_colors(image: np.ndarray) -> np.ndarray:
    """Return an image H×W×C as a picture H×W×3: of other than three channels the first ones."""
    channels = image.shape[2]
    return image if channels == 3 else image[..., [min(i, channels - 1) for i in range(3)]]


def to_inputs(images: Sequence[np.ndarray], preprocessor: nn.Module) -> List[Tensor]:
    """Return images as a backbone takes them.

    Args:
        images (Sequence[np.ndarray]): Each H×W×C uint8, RGB with 3 channels.
        preprocessor (nn.Module): Of :class:`Backbones`.

    Returns:
        List[Tensor]: Each 1×C×H×W.
    """
    images = [image[..., ::-1] if image.shape[2] == 3 else image for image in images]
    planes = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images]
    return [preprocessor(dict(inputs=x[None], data_samples=None))['inputs'] for x in planes]


@torch.no_grad()
def stage_maps(backbone: nn.Module, inputs: Sequence[Tensor]) -> List[List[Tensor]]:
    """Return the output of each stage, whatever the backbone itself returns.

    Args:
        backbone (nn.Module): Of mmpretrain: a ResNet or one that is built like
            it (``res_layers``), or one with ``stages``, such as ConvNeXt and
            Swin. A vision transformer has no stages: four maps are taken of it,
            after each quarter of its blocks.
        inputs (Sequence[Tensor]): I images, each 1×3×H×W.

    Returns:
        List[List[Tensor]]: By stage, from stage 2 (the first one, in ResNet's
        numbers, whose stem is stage 1), and image: C×h×w.

    Raises:
        InputError: For backbones of other kinds, or features that are not
            finite.
    """
    if isinstance(backbone, VisionTransformer):
        return _transformer_maps(backbone, inputs)
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
        _check_finite(found, number)
    return maps


def _transformer_maps(backbone: VisionTransformer, inputs: Sequence[Tensor]) -> List[List[Tensor]]:
    """Return the maps after each quarter of the blocks of a vision transformer."""
    kept, depth = (backbone.out_indices, backbone.out_type), len(backbone.layers)
    quarters = [max(depth * i // 4, 1) - 1 for i in (1, 2, 3, 4)]
    backbone.out_indices, backbone.out_type = quarters, 'featmap'
    try:
        found = [dict(zip(sorted(set(quarters)), backbone(image))) for image in inputs]
    finally:
        backbone.out_indices, backbone.out_type = kept
    maps = [[maps[quarter][0] for maps in found] for quarter in quarters]
    for number, stage in enumerate(maps, start=2):
        _check_finite(stage, number)
    return maps


def _check_finite(maps: Sequence[Tensor], stage: int) -> None:
    if not all(m.isfinite().all() for m in maps):
        raise InputError(
            f'features of stage {stage} are not finite: the weights are damaged, or training '
            'diverged'
        )
