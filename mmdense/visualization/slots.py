# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the groups of prototypes.

A segment is the set of pixels of one image whose best prototype is the same.
"""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch import Tensor

from mmdense.evaluation.slots import Picture, Survey


def prototype_colours(pixels: Tensor) -> np.ndarray:
    """Return one colour a prototype; those that are used most differ most.

    Args:
        pixels (Tensor): P, as in :class:`Survey`.

    Returns:
        np.ndarray: P×3, RGB in [0, 1].
    """
    rank = pixels.argsort(descending=True, stable=True).argsort().numpy()
    # Hues a golden section apart, so that neighbours in rank are far apart; then the same in other
    # shades.
    shades = np.array([(0.85, 1.0), (0.9, 0.6), (0.4, 1.0)])
    hue = 0.618034 * rank % 1
    return hsv_to_rgb(np.column_stack([hue, shades[rank // 9 % 3]]))


def paint_groups(picture: Picture, colours: np.ndarray) -> np.ndarray:
    """Paint an image in grey under the colours of its pixels' prototypes, with white borders.

    Args:
        picture (Picture): The image.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.

    Returns:
        np.ndarray: H×W×3 in [0, 1].
    """
    grey = picture.image.mean(axis=2, keepdims=True) / 255
    overlay = 0.4 * grey + 0.6 * colours[picture.labels]
    overlay[_borders(picture.labels)] = 1
    return overlay


def draw_groups(
    pictures: Sequence[Picture],
    colours: np.ndarray,
    title: str = '',
    path: Optional[str] = None,
    words: Tuple[str, str] = ('prototype', 'prototypes'),
) -> Figure:
    """Draw every image, and next to it the same image coloured by group.

    Segments of 2 % of an image or more bear the number of their group.

    Args:
        pictures (Sequence[Picture]): One or more.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.
        title (str): Title of the picture.
        path (str, optional): Also save it there; the suffix is the format.
        words (tuple[str, str]): Words for one group and for several.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    pairs = 1 if len(pictures) <= 3 else 2 if len(pictures) <= 8 else 3  # in a row
    rows = -(-len(pictures) // pairs)
    side = 3.4 if pairs == 1 else 2.6  # inches
    tallest = max(picture.image.shape[0] / picture.image.shape[1] for picture in pictures)
    width, height = 2 * pairs * (side + 0.1), rows * (side * min(tallest, 1.5) + 0.3) + 0.6
    figure, axes = _grid(rows, 2 * pairs, width, height, title)
    for axis in axes.flat[2 * len(pictures) :]:
        axis.axis('off')
    for picture, plain, coloured in zip(pictures, axes.flat[::2], axes.flat[1::2]):
        plain.imshow(picture.image)
        plain.set_title(_short_name(picture.path), fontsize=10)
        coloured.imshow(paint_groups(picture, colours))
        numbers, areas = np.unique(picture.labels, return_counts=True)
        coloured.set_title(f'{len(numbers)} {words[len(numbers) != 1]}', fontsize=10)
        for number in numbers[areas >= 0.02 * picture.labels.size]:
            # inside the segment, as far from its border as can be
            inside = distance_transform_edt(np.pad(picture.labels == number, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            coloured.text(
                x,
                y,
                str(number),
                ha='center',
                va='center',
                fontsize=9,
                color='white',
                path_effects=[withStroke(linewidth=2.2, foreground='black')],
                clip_on=True,
            )
    return _saved(figure, path)


def draw_nearest(
    found: Survey,
    prototypes: Sequence[int],
    pictures: Dict[int, Picture],
    colours: np.ndarray,
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw a row for each prototype: its nearest segments, the rest dimmed.

    Args:
        found (Survey): Says which segments.
        prototypes (Sequence[int]): Rows, from top to bottom.
        pictures (Dict[int, Picture]): The images of these segments.
        colours (np.ndarray): P×3, of :func:`prototype_colours`.
        title (str): Title of the picture.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    columns = max(1, int((found.scores[prototypes] > -torch.inf).sum(dim=1).max()))
    width, height = 2.1 * columns + 1.7, 2.35 * len(prototypes) + 0.7
    figure, axes = _grid(len(prototypes), columns, max(width, 7), height, title)
    for prototype, row in zip(prototypes, axes):
        share = float(found.pixels[prototype] / found.pixels.sum())
        row[0].set_ylabel(
            f'prototype {prototype}\n{share:.1%} of pixels',
            rotation=0,
            ha='right',
            va='center',
            labelpad=12,
            fontsize=10,
        )
        segments = zip(found.scores[prototype].tolist(), found.images[prototype].tolist())
        for axis, (score, index) in zip(row, segments):
            if score == -torch.inf:  # nothing left; the label of the row stays
                for spine in axis.spines.values():
                    spine.set_visible(False)
                continue
            picture = pictures[index]
            mask = picture.labels == prototype
            grey = picture.image.mean(axis=2, keepdims=True) / 255
            shown = np.where(mask[..., None], picture.image / 255, 0.15 + 0.3 * grey)
            outline = binary_dilation(mask, iterations=max(1, len(mask) // 100)) & ~mask
            shown[outline] = colours[prototype]
            axis.imshow(shown)
            axis.set_xlabel(f'cosine {score:.2f}', fontsize=9, labelpad=3)
    return _saved(figure, path)


def _grid(rows: int, columns: int, width: float, height: float, title: str):
    """Make a figure of so many inches with axes that have no ticks."""
    figure = Figure(figsize=(width, height), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _saved(figure: Figure, path: Optional[str]) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure


def _borders(labels: np.ndarray) -> np.ndarray:
    """Return H×W, whether another label begins to the right or below."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def _short_name(path: str, length: int = 26) -> str:
    name = path.replace('\\', '/').rsplit('/', 1)[-1]
    return name if len(name) <= length else f'{name[: length - 9]}…{name[-8:]}'
