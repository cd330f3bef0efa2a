# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw where the queries of a detector that searches patches find them."""

from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from mmdense.datasets import CropProposal, LoadProposals
from mmdense.evaluation.feature_maps import to_inputs
from mmdense.utils.randomness import seeded

from .slots import _grid, _saved, _short_name

_SHOWN = 4  # patches of an image
TRUE, FOUND, BEST = (255, 255, 255), (0, 170, 255), (255, 200, 0)


class FoundPatches(NamedTuple):
    """Hold patches of an image and where each query finds them.

    Attributes:
        patches (list[np.ndarray]): P, each S×S×3 uint8, RGB.
        boxes (np.ndarray): P×4, (x0, y0, x1, y1) of the patches in fractions of the image.
        found (np.ndarray): P×K×4, boxes of the K queries that ask for each patch.
        scores (np.ndarray): P×K in [0, 1].
    """

    patches: List[np.ndarray]
    boxes: np.ndarray
    found: np.ndarray
    scores: np.ndarray


@torch.no_grad()
def find_patches(
    model: Any, preprocessor: nn.Module, images: Sequence[np.ndarray], seed: int = 0
) -> List[FoundPatches]:
    """Cut patches out of each image at random, and let the detector search them.

    The sides of a patch are at least a sixth of the image's short side.

    Args:
        model (Any): Has ``find(images, patches)`` and ``views``, as :class:`mmdense.models.UPDETR`;
            in eval mode.
        preprocessor (nn.Module): Data preprocessor of the model.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        seed (int): Seed of the patches.

    Returns:
        List[FoundPatches]: One for each image.
    """
    number, results = model.views.groups[1], []
    for i, image in enumerate(images):
        shape = image.shape[:2]
        draw = LoadProposals('random', max_num=number, min_size=max(1, min(shape) // 6))
        with seeded(seed, i):
            boxes = draw.transform(dict(img_path='', img_shape=shape))['proposals']
        cut = CropProposal(first_view=0)
        patches = [
            cut.transform(dict(img=image, proposals=boxes, earlier_boxes=range(k)))['img']
            for k in range(number)
        ]
        whole, *parts = to_inputs([image, *patches], preprocessor)
        scores, found = model.find(whole, parts)
        results.append(FoundPatches(patches, boxes, found[0].numpy(), scores[0].numpy()))
    return results


def paint_found(image: np.ndarray, one: FoundPatches, patch: int) -> np.ndarray:
    """Paint where a patch is, and where its queries find it, over a darker image.

    Args:
        image (np.ndarray): H×W×3 uint8, RGB.
        one (FoundPatches): The patches.
        patch (int): Number of the patch.

    Returns:
        np.ndarray: H×W×3 uint8: the patch as it is, in a white frame, boxes of queries in blue,
        that with the highest score in yellow.
    """
    size = np.array([image.shape[1], image.shape[0]] * 2)
    painted = image // 3 + 20
    x0, y0, x1, y1 = np.rint(one.boxes[patch] * size).astype(int)
    painted[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    order = one.scores[patch].argsort()
    drawn = [(one.found[patch, query], FOUND, 1) for query in order[:-1]]
    drawn += [(one.boxes[patch], TRUE, 2), (one.found[patch, order[-1]], BEST, 2)]
    return paint_boxes(painted, drawn)


def paint_boxes(
    image: np.ndarray, boxes: Iterable[Tuple[np.ndarray, Tuple[int, int, int], int]]
) -> np.ndarray:
    """Paint the frames of boxes over an image, in place.

    Args:
        image (np.ndarray): H×W×3 uint8.
        boxes (Iterable): Each (x0, y0, x1, y1) in fractions of the image, the color, and the
            width in three-hundredths of the image's longer side.

    Returns:
        np.ndarray: The image.
    """
    size = np.array([image.shape[1], image.shape[0]] * 2)
    thin = max(1, max(image.shape) // 300)
    for box, color, width in boxes:
        x0, y0, x1, y1 = np.rint(box * size).astype(int).tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), color, width * thin)
    return image


def draw_found_patches(
    images: Sequence[np.ndarray],
    found: Sequence[FoundPatches],
    names: Sequence[str],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw a row for each image: the image, and where the queries of its first patches find them.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        found (Sequence[FoundPatches]): Of :func:`find_patches`.
        names (Sequence[str]): Paths of the images.
        title (str): Title of the figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    shown = min(_SHOWN, len(found[0].patches))
    height = sum(min(1.2, image.shape[0] / image.shape[1]) for image in images)
    size = (3.0 * (1 + shown), 3.0 * height + 0.4 * len(images) + 0.7)
    figure, axes = _grid(len(images), 1 + shown, *size, title)
    for image, one, name, (first, *rest) in zip(images, found, names, axes):
        first.imshow(image)
        first.set_title(_short_name(name), fontsize=10)
        for patch, axis in enumerate(rest):
            axis.imshow(paint_found(image, one, patch))
            overlap = box_overlap(one, patch)
            axis.set_title(f'patch {patch + 1}: IoU {overlap:.2f}', fontsize=10)
    return _saved(figure, path)


def box_overlap(one: FoundPatches, patch: int) -> float:
    """Return the IoU of a patch and the box of the query with the highest score."""
    return iou(one.boxes[patch], one.found[patch, one.scores[patch].argmax()])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the IoU of two boxes (x0, y0, x1, y1)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = sides.clip(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))
