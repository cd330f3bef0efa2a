# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw where an algorithm that searches features finds a crop in its image."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from mmdense.evaluation.feature_maps import to_inputs

from .correspondence import cut_view
from .slots import _grid, _saved, _short_name

_SIDE = 0.4  # of a crop, of the short side of the image: SCFS's have 5 to 25 % of the area


class SearchedCrop(NamedTuple):
    """Hold a crop and where its features are found in the image.

    Attributes:
        crop (np.ndarray): S×S×3 uint8, RGB.
        box (tuple[float, float, float, float]): x0, y0, x1, y1 in fractions of the image.
        cosines (list[np.ndarray]): Of each stage h×w, in [-1, 1].
    """

    crop: np.ndarray
    box: Tuple[float, float, float, float]
    cosines: List[np.ndarray]


@torch.no_grad()
def search_crops(
    model: Any, preprocessor: nn.Module, images: Sequence[np.ndarray], seed: int = 0
) -> List[SearchedCrop]:
    """Cut a square out of each image at random, and search its features in the complete image.

    Args:
        model (Any): Has ``search(crops, images)``, as :class:`mmdense.models.SCFS`; in eval mode.
        preprocessor (nn.Module): Data preprocessor of the model.
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        seed (int): Seed of the crops.

    Returns:
        List[SearchedCrop]: One for each image.
    """
    random, found = np.random.RandomState(seed), []
    for image in images:
        height, width = image.shape[:2]
        side = _SIDE * min(height, width)
        x0, y0 = random.uniform(0, 1 - side / width), random.uniform(0, 1 - side / height)
        box = x0, y0, x0 + side / width, y0 + side / height
        # as much smaller than the image as in training
        pixels = max(round(min(height, width) * 96 / 224 / 32), 1) * 32
        crop = np.asarray(cut_view(Image.fromarray(image), box, pixels))
        inputs = [to_inputs([one], preprocessor)[0] for one in (crop, image)]
        cosines = [stage[0, 0].numpy() for stage in model.search(*inputs)]
        found.append(SearchedCrop(crop, box, cosines))
    return found


def draw_searched_crops(
    images: Sequence[np.ndarray],
    found: Sequence[SearchedCrop],
    names: Sequence[str],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw each image with a frame around the crop, the crop, and where each stage finds it.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        found (Sequence[SearchedCrop]): Of :func:`search_crops`.
        names (Sequence[str]): Paths of the images.
        title (str): Title of the figure.
        path (str, optional): File to save it to; the suffix is the format.

    Returns:
        Figure: A figure that needs no display, and that pyplot does not know.
    """
    columns, rows = 2 + len(found[0].cosines), len(images)
    figure, axes = _grid(rows, columns, 2.6 * columns, 2.3 * rows + 0.7, title)
    for row, image, one, name in zip(axes, images, found, names):
        row[0].imshow(image)
        row[0].set_title(_short_name(name), fontsize=10)
        row[1].imshow(one.crop)
        row[1].set_title('crop', fontsize=10)
        for number, (axis, cosines) in enumerate(zip(row[2:], one.cosines), start=1):
            height, width = image.shape[:2]
            axis.imshow(image.mean(axis=2), cmap='gray')
            axis.imshow(cosines, cmap='inferno', alpha=0.7, extent=(0, width, height, 0))
            low, high = cosines.min(), cosines.max()
            axis.set_title(f'stage {number}: cosine {low:.2f} to {high:.2f}', fontsize=10)
        for axis in (row[0], *row[2:]):
            _frame(axis, one.box, image.shape)
    return _saved(figure, path)


def _frame(axis: Any, box: Tuple[float, float, float, float], shape: Tuple[int, ...]) -> None:
    """Draw a frame that is seen on dark and on light places."""
    x, y = np.array(box)[[0, 2, 2, 0, 0]] * shape[1], np.array(box)[[1, 1, 3, 3, 1]] * shape[0]
    axis.plot(x, y, color='black', linewidth=3)
    axis.plot(x, y, color='white', linewidth=1.4)
    axis.set_xlim(0, shape[1])
    axis.set_ylim(shape[0], 0)
