# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the proposals of an image, and the queries of a detector that are matched with them."""

from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from mmdense.datasets import LoadProposals
from mmdense.evaluation.feature_maps import to_inputs
from mmdense.utils.randomness import seeded

from .found_patches import BEST, FOUND, TRUE, iou, paint_boxes
from .slots import _grid, _saved, _short_name

_PROPOSALS = 8  # of an image


class FoundObjects(NamedTuple):
    """Hold proposals of an image and the detector's boxes.

    Attributes:
        proposals (np.ndarray): R×4, (x0, y0, x1, y1) in fractions of the image.
        matched (np.ndarray): R×4, the box of the query that each is matched with.
        best (np.ndarray): R×4, the boxes of the R queries with the highest scores.
    """

    proposals: np.ndarray
    matched: np.ndarray
    best: np.ndarray

    @property
    def overlap(self) -> float:
        """Return the mean IoU of proposals and matched boxes."""
        return float(np.mean([iou(a, b) for a, b in zip(self.proposals, self.matched)]))


@torch.no_grad()
def find_objects(
    model: Any, preprocessor: nn.Module, images: Sequence[np.ndarray], seed: int = 0
) -> List[FoundObjects]:
    """Match windows of a grid, drawn at random, with the queries of a detector.

    Args:
        model (Any): Has ``find(images, boxes)``, as :class:`mmdense.models.DETReg`; in eval mode.
        preprocessor (nn.Module): Data preprocessor of the model.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        seed (int): Seed of the draw.

    Returns:
        List[FoundObjects]: One for each image.
    """
    load, results = LoadProposals('grid', max_num=_PROPOSALS, shuffle=True), []
    for i, image in enumerate(images):
        with seeded(seed, i):
            boxes = load.transform(dict(img_path=''))['proposals']
        (inputs,) = to_inputs([image], preprocessor)
        scores, found, match = (x[0] for x in model.find(inputs, [torch.from_numpy(boxes)]))
        matched = (match >= 0).nonzero().flatten()
        best = found[scores.argsort(descending=True)[: len(boxes)]]
        results.append(
            FoundObjects(
                boxes[match[matched].numpy()], found[matched].numpy().clip(0, 1), best.numpy()
            )
        )
    return results


def paint_objects(image: np.ndarray, one: FoundObjects) -> np.ndarray:
    """Paint proposals in white, the boxes that are matched with them in yellow, and those with the
    highest scores in blue, over a darker image H×W×3 uint8, RGB."""
    drawn = [(box, FOUND, 1) for box in one.best]
    drawn += [(box, TRUE, 1) for box in one.proposals] + [(box, BEST, 2) for box in one.matched]
    return paint_boxes(image // 2 + 20, drawn)


def draw_found_objects(
    images: Sequence[np.ndarray],
    found: Sequence[Sequence[FoundObjects]],
    names: Sequence[str],
    checkpoints: Sequence[str],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw a row for each image: the image, and the objects that each checkpoint finds.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        found (Sequence[Sequence[FoundObjects]]): Of :func:`find_objects`, for each checkpoint.
        names (Sequence[str]): Paths of the images.
        checkpoints (Sequence[str]): Names of the checkpoints.
        title (str): Title of the figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    height = sum(min(1.2, image.shape[0] / image.shape[1]) for image in images)
    columns = 1 + len(found)
    size = (4.0 * columns, 4.0 * height + 0.4 * len(images) + 0.7)
    figure, axes = _grid(len(images), columns, *size, title)
    for i, (image, name, (first, *rest)) in enumerate(zip(images, names, axes)):
        first.imshow(image)
        first.set_title(_short_name(name), fontsize=10)
        for axis, results, checkpoint in zip(rest, found, checkpoints):
            axis.imshow(paint_objects(image, results[i]))
            axis.set_title(f'{checkpoint}: mean IoU {results[i].overlap:.2f}', fontsize=10)
    return _saved(figure, path)
