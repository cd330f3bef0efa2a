# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Measure frozen dense features, in seconds instead of a fine-tuning run."""

import os.path as osp
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union
from zlib import crc32

import cv2
import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast, get_rank, get_world_size
from torch import Tensor, nn

from mmdense.models.utils import calibrate
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import DataError, InputError, MMDenseError

from .classifiers import LinearProbe, NearestNeighbours
from .feature_maps import stage_maps
from .labelled_data import LabelledBoxes, LabelledImage, LabelledMaps

METHODS = dict(knn=NearestNeighbours, linear=LinearProbe)
_BANK = 20_000  # labelled locations, at most


class Scores(Dict[str, float]):
    """Hold scores by name, in per cent.

    Args:
        scores (dict[str, float]): The scores.
        guesses (dict[str, float]): By metric, those of a classifier that looks at no image: it
            answers with the most frequent class of the training labels everywhere.
    """

    def __init__(self, scores: Dict[str, float], guesses: Dict[str, float]) -> None:
        super().__init__(scores)
        self.guesses = guesses


def check_arguments(
    methods: Sequence[str], size: int, max_images: Optional[int], stage: int
) -> None:
    """Check the arguments of :func:`evaluate_features`.

    Raises:
        InputError: With the first that cannot be.
    """
    if isinstance(methods, str) or not methods or not set(methods) <= set(METHODS):
        raise InputError(f'methods must be some of {", ".join(METHODS)}, got {methods!r}')
    check_counts(size=size)
    if max_images is not None:
        check_counts(max_images=max_images)
    if type(stage) is not int:
        raise InputError(f'stage must be a whole number, got {stage!r}')


@torch.no_grad()
def evaluate_features(
    backbone: nn.Module,
    preprocessor: nn.Module,
    data: Union[LabelledMaps, LabelledBoxes],
    methods: Sequence[str] = ('knn', 'linear'),
    size: int = 512,
    max_images: Optional[int] = 50,
    stage: int = -1,
) -> Scores:
    """Measure a backbone's maps by classifiers of their locations.

    The classifiers see the labelled locations (or patches) of ``data.train``, at
    most 20,000 of them, equally many of each image and drawn by its name; what
    they say of ``data.test`` is measured at the pixels (or patches).

    The backbone is copied, and nothing of it or of any random generator
    changes. Of several processes each sees a part of the images, by the
    buffers (BatchNorm's statistics) of the first; all get the same numbers.

    Args:
        backbone (nn.Module): As :func:`mmdense.evaluation.feature_maps.stage_maps` takes
            it.
        preprocessor (nn.Module): 1×3×H×W uint8, BGR, to what it takes.
        data (LabelledMaps | LabelledBoxes): Labelled images.
        methods (Sequence[str]): 'knn' (:class:`NearestNeighbours`) and
            'linear' (:class:`LinearProbe`). Defaults to both.
        size (int): Images with a longer side than so many pixels are scaled
            down to it. Defaults to 512.
        max_images (int, optional): Use so many images of train and so many of
            test, evenly spaced in the order of their paths; None uses all.
            Defaults to 50.
        stage (int): Whose map, as an index of a list. Defaults to -1, the
            last.

    Returns:
        Scores: In [0, 100]: ``knn_mIoU``, ``knn_aAcc``,
        ``linear_mIoU``, ``linear_aAcc`` of maps; ``…_accuracy`` and
        ``…_balanced_accuracy`` of boxes.

    Raises:
        DataError: When images or labels cannot be read, or none is labelled.
        InputError: Arguments that cannot be, or features that are not finite.
    """
    check_arguments(methods, size, max_images, stage)
    backbone = deepcopy(backbone)  # without what compiled it
    backbone.eval()
    for buffer in backbone.buffers():
        broadcast(buffer)
    train, test = (_subsample(images, max_images) for images in (data.train, data.test))
    quota = max(_BANK // len(train), 1)

    def look(image: LabelledImage) -> Tuple[Tensor, Any]:
        pixels, label = data.read(image)
        return _features(backbone, preprocessor, pixels, size, stage), label

    def labelled(image: LabelledImage) -> Tuple[Tensor, Tensor]:
        x, y = data.labelled_features(*look(image))
        rng = np.random.default_rng(crc32(osp.basename(image.path).encode()))
        chosen = torch.from_numpy(np.sort(rng.permutation(len(y))[:quota]))
        return x.cpu()[chosen], y[chosen]

    def confusions(image: LabelledImage) -> Tensor:
        features, label = look(image)
        return torch.stack([data.confusion(c, features, label) for c in classifiers])

    with _without_benchmark():
        found = _share(train, labelled)
        features, labels = (torch.cat(parts) for parts in zip(*found))
        if len(labels) == 0:
            raise DataError(
                f'no location of the {len(train)} training images is labelled: check ignore_index'
            )
        images = torch.repeat_interleave(torch.tensor([len(y) for _, y in found]))
        device = next((p.device for p in backbone.parameters()), features.device)
        bank = [x.to(device) for x in (features, labels, images)]
        classifiers = [METHODS[name](*bank, data.num_classes) for name in methods]
        confusion = torch.stack(_share(test, confusions)).sum(0)
    if confusion.sum() == 0:
        raise DataError(f'nothing in the {len(test)} test images is labelled')
    guess = torch.zeros_like(confusion[0])
    guess[:, labels.bincount(minlength=data.num_classes).argmax()] = confusion[0].sum(1)
    found = {
        f'{name}_{key}': round(value, 2)
        for name, matrix in zip(methods, confusion)
        for key, value in data.metrics(matrix).items()
    }
    return Scores(found, {key: round(value, 2) for key, value in data.metrics(guess).items()})


def _subsample(images: List[LabelledImage], count: Optional[int]) -> List[LabelledImage]:
    """Return ``count`` images, evenly spaced."""
    if count is None or len(images) <= count:
        return images
    return [images[i * len(images) // count] for i in range(count)]


def _share(images: List[LabelledImage], work: Callable) -> list:
    """Return ``work`` of each image, in order, shared by all processes.

    An error of one process is raised in all, or the others would wait for ever.
    """
    found, error = [], None
    try:
        found = [work(image) for image in images[get_rank() :: get_world_size()]]
    except MMDenseError as e:
        error = e
    parts = all_gather_object((found, error))
    for _, error in parts:
        if error is not None:
            raise error
    return [parts[i % len(parts)][0][i // len(parts)] for i in range(len(images))]


def calibrate_on(
    backbone: nn.Module,
    preprocessor: nn.Module,
    data: Union[LabelledMaps, LabelledBoxes],
    size: int = 512,
    max_images: Optional[int] = 50,
    **_,
) -> None:
    """Give the BatchNorm of a random backbone the statistics of the training images, in place.

    Arguments are those of :func:`evaluate_features`.
    """
    images = (data.read(image)[0] for image in _subsample(data.train, max_images))
    calibrate(backbone, (_inputs(preprocessor, pixels, size) for pixels in images))


def _inputs(preprocessor: nn.Module, pixels: np.ndarray, size: int) -> Tensor:
    """Return the input 1×3×h×w of an image H×W×3, scaled down to ``size``."""
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    if scale < 1:
        shape = max(round(width * scale), 1), max(round(height * scale), 1)
        pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return preprocessor(dict(inputs=inputs, data_samples=None))['inputs']


def _features(
    backbone: nn.Module, preprocessor: nn.Module, pixels: np.ndarray, size: int, stage: int
) -> Tensor:
    """Return the features C×h×w of an image H×W×3."""
    maps = stage_maps(backbone, [_inputs(preprocessor, pixels, size)])
    if not -len(maps) <= stage < len(maps):
        raise InputError(
            f'stage {stage}, but {type(backbone).__name__} has {len(maps)}: 0 to {len(maps) - 1}, '
            'or -1 for the last'
        )
    return maps[stage][0].float()


@contextmanager
def _without_benchmark() -> Iterator[None]:
    """Switch off the benchmark of cuDNN, which would run for each size of image."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
