# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the noisy copies of boxes over a run, as an algorithm with BoxCurriculum draws them."""

from typing import List, Optional, Sequence

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from mmdense.models.layers import BoxCurriculum
from mmdense.utils.randomness import seeded

from .slots import _grid, _saved, _short_name

STAGES = {'at the start': 0.0, 'in the middle': 0.5, 'at the end': 1.0}
# a box of the upper left and one of the lower right, in fractions of the image
BOXES = ((0.08, 0.1, 0.55, 0.6), (0.62, 0.55, 0.95, 0.93))
_BOX, _VALID, _INVALID = (255, 200, 0), (0, 230, 255), (255, 60, 60)


def paint_copies(
    picture: np.ndarray,
    curriculum: BoxCurriculum,
    progress: float,
    boxes: Sequence[Sequence[float]] = BOXES,
    seed: int = 0,
) -> np.ndarray:
    """Paint boxes and their copies at a share of the run.

    Args:
        picture (np.ndarray): H×W×3 uint8, RGB.
        curriculum (BoxCurriculum): Draws the copies.
        progress (float): Share of the run, 0 to 1.
        boxes (Sequence): (x0, y0, x1, y1) in fractions of the picture.
        seed (int): Seed of the copies.

    Returns:
        np.ndarray: H×W×3 uint8: boxes in yellow, valid copies in blue, those that are too far from
        their box in red.
    """
    size = picture.shape[:2]
    pixels = torch.tensor(boxes) * torch.tensor(size[::-1]).repeat(2)
    with seeded(seed):
        copies, invalid = curriculum(pixels, size, progress)
    painted = picture.copy()
    thin = max(1, max(size) // 300)
    for many, wrong in zip(copies.round().int().tolist(), invalid.tolist()):
        for (x0, y0, x1, y1), far in zip(many[:-1], wrong):
            cv2.rectangle(painted, (x0, y0), (x1, y1), _INVALID if far else _VALID, thin)
    for x0, y0, x1, y1 in pixels.round().int().tolist():
        cv2.rectangle(painted, (x0, y0), (x1, y1), _BOX, 3 * thin)
    return painted


def paint_run(picture: np.ndarray, curriculum: BoxCurriculum) -> List[np.ndarray]:
    """Return :func:`paint_copies` of each of :data:`STAGES`."""
    return [paint_copies(picture, curriculum, progress) for progress in STAGES.values()]


def draw_noisy_boxes(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    curriculum: BoxCurriculum,
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw a row for each image: boxes and their copies at the start, in the middle and at the end
    of the run.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        names (Sequence[str]): Their paths.
        curriculum (BoxCurriculum): Draws the copies.
        title (str): Title of the figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    height = sum(min(1.2, image.shape[0] / image.shape[1]) for image in images)
    figure, axes = _grid(len(images), 3, 11.0, 3.6 * height + 0.4 * len(images) + 0.7, title)
    for image, name, row in zip(images, names, axes):
        for axis, picture, (stage, progress) in zip(
            row, paint_run(image, curriculum), STAGES.items()
        ):
            axis.imshow(picture)
            threshold = curriculum.at(progress).threshold
            axis.set_title(f'{_short_name(name)}, {stage}: IoU ≥ {threshold:.2g}', fontsize=10)
    return _saved(figure, path)
