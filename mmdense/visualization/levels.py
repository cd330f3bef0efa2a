# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw the features of each stage of a backbone as colours, pretrained next to random.

The colours are the first three principal components, as in `DINOv2
<https://arxiv.org/abs/2304.07193>`_, figure 1, here without a threshold that
separates the foreground.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from .slots import _short_name


class Stage(NamedTuple):
    """Hold the features of one stage, to be drawn.

    Attributes:
        colours (List[np.ndarray]): Of each image, h×w×3 in [0, 1].
        explained (float): Share of the variance that the colours show, 0 to 1.
        channels (int): C.
    """

    colours: List[np.ndarray]
    explained: float
    channels: int


def pca_colours(maps: Sequence[Tensor], normalized: bool = False) -> Stage:
    """Turn features into colours: red is the first principal component.

    One analysis for all images, so that equal colours mean similar features.
    A component goes from 0 at its 1st percentile to 1 at its 99th, beyond
    which it is clipped. Its sign makes the largest loading positive. A
    component without variance is 0.5.

    Args:
        maps (Sequence[Tensor]): Of each image, C×h×w; h and w may differ.
        normalized (bool): Whether features are scaled to unit length first, as
            where they are compared by cosine. Defaults to False.

    Returns:
        Stage: The colours.
    """
    features = [m.flatten(1).T.double() for m in maps]  # hw×C
    if normalized:
        features = [normalize(x, dim=1) for x in features]
    count = sum(map(len, features))
    mean = sum(x.sum(dim=0) for x in features) / count
    features = [x - mean for x in features]
    # By the C×C covariance: all images together can have many locations.
    variances, axes = torch.linalg.eigh(sum(x.T @ x for x in features) / count)
    variances, axes = variances.flip(0)[:3].clamp(min=0), axes.flip(1)[:, :3]
    total = sum(x.square().sum() for x in features) / count
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    # Less than the rounding errors of float32 features is no variance.
    axes = axes * (variances > 1e-10 * (total + mean.square().sum()))

    scores = [(x @ axes).numpy() for x in features]
    every = np.concatenate(scores)
    low, high = np.percentile(every, (1, 99), axis=0)
    same = high <= low  # all but a few locations are equal: these few count
    low, high = np.where(same, every.min(axis=0), low), np.where(same, every.max(axis=0), high)
    colours = []
    for score, m in zip(scores, maps):
        colour = np.full((len(score), 3), 0.5)
        varies = np.flatnonzero(high > low)
        scaled = (score[:, varies] - low[varies]) / (high - low)[varies]
        colour[:, varies] = scaled.clip(0, 1)
        colours.append(colour.reshape(*m.shape[1:], 3))
    explained = float(variances.sum() / total) if total > 0 else 0.0
    return Stage(colours, min(explained, 1.0), len(mean))


def draw_levels(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    networks: Dict[str, Sequence[Stage]],
    title: str = '',
    path: Optional[str] = None,
) -> Figure:
    """Draw each image, and next to it a row for each network and a column for each stage.

    Args:
        images (Sequence[np.ndarray]): Each H×W×3 uint8, RGB.
        names (Sequence[str]): Of the images, paths or others.
        networks (Dict[str, Sequence[Stage]]): Name to stages, as many of each.
        title (str): Title of the picture.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    columns = 1 + len(next(iter(networks.values())))
    # inches; a portrait is as high as a square, and narrower
    side = 2.6
    heights = [side * min(1, image.shape[0] / image.shape[1]) for image in images]
    height = (sum(heights) + 0.1 * len(images) + 0.2) * len(networks) + 1.3
    figure = Figure(figsize=(side * columns + 0.5, height), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05, wspace=0.01, hspace=0.01)
    figure.suptitle(title, fontsize=14)
    grid = figure.add_gridspec(
        len(images) * len(networks),
        columns,
        height_ratios=[h for h in heights for _ in networks],
    )
    for i, image in enumerate(images):
        rows = range(i * len(networks), (i + 1) * len(networks))
        photo = _panel(figure, grid[rows[0] : rows[-1] + 1, 0], image, image.shape)
        photo.set_title(_short_name(names[i]), fontsize=10)
        for row, (name, stages) in zip(rows, networks.items()):
            for column, stage in enumerate(stages, start=1):
                colours = stage.colours[i]
                axis = _panel(figure, grid[row, column], colours, image.shape)
                if row == 0:
                    stride = round(max(image.shape) / max(colours.shape))
                    about = f'stride {stride}, {stage.channels} channels'
                    axis.set_title(f'stage {column + 1}\n{about}', fontsize=11)
                if column == 1:
                    axis.set_ylabel(name, fontsize=11)
                if i == 0:  # it is that of all images
                    axis.set_xlabel(f'{stage.explained:.0%} of variance', fontsize=9, labelpad=2)
    figure.supxlabel(
        'Colours: the first three principal components of the features as red, green and blue, '
        'with the share of variance that they hold.\nOne analysis for each network and stage, over '
        'all images: within these, equal colours are similar features.',
        fontsize=10,
    )
    if path is not None:
        figure.savefig(path)
    return figure


def _panel(figure: Figure, place, pixels: np.ndarray, shape: Tuple[int, ...]):
    """Draw pixels as they are, stretched over an image of a shape (H, W, …)."""
    axis = figure.add_subplot(place)
    axis.imshow(pixels, extent=(0, shape[1], shape[0], 0), interpolation='nearest')
    axis.set_xticks([])
    axis.set_yticks([])
    return axis
