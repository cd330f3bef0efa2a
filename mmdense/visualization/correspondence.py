# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Draw and count the locations of two views that a backbone takes for the same place.

A view is a signed box ``(x0, y0, x1, y1)`` of its image, in [0, 1] by width and
height; x0 > x1 says that it is mirrored. Cells are numbered row by row.
"""

from typing import NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.utils import gather_locations, grid_centers, match_locations, to_view

Box = Sequence[float]


class Matches(NamedTuple):
    """Hold the matches that :func:`match_views` found for N pairs of views.

    Attributes:
        match (Tensor): N×S, for every location of view a the most similar of the T
            locations of view b.
        similarity (Tensor): N×S, the cosine of the two.
        grid_a (tuple[int, int]): Rows and columns of the grid of view a, S in all.
        grid_b (tuple[int, int]): Those of view b, T in all.
    """

    match: Tensor
    similarity: Tensor
    grid_a: Tuple[int, int]
    grid_b: Tuple[int, int]


@torch.no_grad()
def match_views(backbone: nn.Module, view_a: Tensor, view_b: Tensor) -> Matches:
    """Match locations by the last map of a backbone, as DenseCL does.

    Args:
        backbone (nn.Module): Returns a map N×C×h×w or a sequence of them; its
            mode (train, eval) is the caller's affair.
        view_a (Tensor): N×3×H×W, as the backbone wants them.
        view_b (Tensor): N×3×H'×W'.

    Returns:
        Matches: For each of the N pairs.
    """
    maps = [backbone(view) for view in (view_a, view_b)]
    maps = [m[-1] if isinstance(m, (list, tuple)) else m for m in maps]
    feat_a, feat_b = (normalize(m.flatten(2), dim=1) for m in maps)
    match = match_locations(feat_a, feat_b)
    similarity = (feat_a * gather_locations(feat_b, match)).sum(dim=1)
    grid_a, grid_b = (tuple(m.shape[2:]) for m in maps)
    return Matches(match, similarity, grid_a, grid_b)


def cut_view(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cut the view that a box describes, size×size pixels.

    Args:
        image (Image.Image): A photograph.
        box (Box): Signed box of four numbers.
        size (int): Side of the view in pixels.

    Returns:
        Image.Image: Mirrored where the box says so.
    """
    x0, y0, x1, y1 = box
    corners = (min(x0, x1) * image.width, y0 * image.height)
    corners += (max(x0, x1) * image.width, y1 * image.height)
    view = image.resize((size, size), Image.BICUBIC, box=corners)
    return view.transpose(Image.FLIP_LEFT_RIGHT) if x0 > x1 else view


def draw_view_pair(
    image: Image.Image, size: int, random: np.random.RandomState
) -> Tuple[Tuple[Box, Box], Tuple[Image.Image, Image.Image]]:
    """Draw two views at random that share a third of the first or more.

    Each is a square of 55 to 90 % of the image's short side, mirrored half of
    the time.

    Args:
        image (Image.Image): A photograph.
        size (int): Side of the views in pixels.
        random (np.random.RandomState): Where they are drawn from.

    Returns:
        tuple: The signed boxes, and the views.
    """
    while True:
        boxes = tuple(_random_box(image, random) for _ in range(2))
        if true_places(*boxes, (8, 8), (8, 8))[1].float().mean() >= 1 / 3:
            return boxes, tuple(cut_view(image, box, size) for box in boxes)


def _random_box(image: Image.Image, random: np.random.RandomState) -> Box:
    side = random.uniform(0.55, 0.9) * min(image.size)
    width, height = side / image.width, side / image.height
    x0, y0 = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    x0, x1 = (x0, x0 + width) if random.rand() < 0.5 else (x0 + width, x0)
    return x0, y0, x1, y0 + height


def true_places(
    box_a: Box, box_b: Box, grid_a: Tuple[int, int], grid_b: Tuple[int, int]
) -> Tuple[Tensor, Tensor]:
    """Return the true places of the locations of view a in view b.

    Args:
        box_a (Box): Signed box of view a.
        box_b (Box): Signed box of view b.
        grid_a (tuple[int, int]): Rows and columns of view a, S locations.
        grid_b (tuple[int, int]): Those of view b.

    Returns:
        tuple[Tensor, Tensor]: S×2, (x, y) of the center of every location of a, in
        grid cells of b; and S, whether that lies within b.
    """
    box_a, box_b = torch.tensor([[box_a], [box_b]], dtype=torch.float64)
    # grid of a → image → grid of b
    size_b = torch.tensor(grid_b[::-1], dtype=torch.float64)
    in_b = to_view(grid_centers(box_a, grid_a), box_b)[0] * size_b
    return in_b, ((in_b >= 0) & (in_b <= size_b)).all(dim=1)


def match_errors(
    match: Tensor, box_a: Box, box_b: Box, grid_a: Tuple[int, int], grid_b: Tuple[int, int]
) -> Tensor:
    """Return the distance of matches from the truth.

    Args:
        match (Tensor): S, indices into the locations of view b.
        box_a, box_b, grid_a, grid_b: As in :func:`true_places`.

    Returns:
        Tensor: S, distance between the center of the matched location and the true
        place, in grid cells of b; NaN for locations that are not in view b.
    """
    places, visible = true_places(box_a, box_b, grid_a, grid_b)
    errors = (_centers_on_grid(grid_b)[match.cpu()] - places).norm(dim=1)
    return errors.masked_fill(~visible, float('nan'))


class Panel(NamedTuple):
    """Hold the matches of one backbone between two views.

    Attributes:
        title (str): Written above.
        match (Tensor): S, indices into the locations of view b.
        similarity (Tensor): S, the colour of the line.
        errors (Tensor): S, from :func:`match_errors`; decides how it is drawn.
    """

    title: str
    match: Tensor
    similarity: Tensor
    errors: Tensor


def draw_correspondence(
    view_a: np.ndarray,
    view_b: np.ndarray,
    panels: Sequence[Panel],
    grid_a: Tuple[int, int],
    grid_b: Tuple[int, int],
    title: str = '',
    tolerance: float = 1.0,
    max_lines: int = 16,
    path: Optional[str] = None,
) -> Figure:
    """Draw two views and lines between matched locations, once for every backbone.

    The locations drawn are the same in all panels: those of view a that are in view
    b too, spread evenly when they are more than ``max_lines``. A line is solid
    when it ends within ``tolerance`` of the true place, else dashed.

    Args:
        view_a (np.ndarray): H×W×3 uint8, RGB.
        view_b (np.ndarray): H'×W'×3 uint8, RGB.
        panels (Sequence[Panel]): From left to right.
        grid_a (tuple[int, int]): Rows and columns of the grid of view a.
        grid_b (tuple[int, int]): Those of view b.
        title (str): Title of the picture.
        tolerance (float): In grid cells. Defaults to 1.
        max_lines (int): Per panel. Defaults to 16.
        path (str, optional): Also save it there; the suffix is the format.

    Returns:
        Figure: No display is needed, and pyplot does not know it.
    """
    locations = _spread(panels[0].errors, max_lines)
    shown = torch.cat([panel.similarity[locations].cpu() for panel in panels])
    colours = ScalarMappable(Normalize(float(shown.min()), float(shown.max())), 'viridis')

    figure = Figure(figsize=(5 * len(panels) + 1, 10), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(hspace=0.08)
    figure.suptitle(title, fontsize=15)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for (above, below), panel in zip(axes.T, panels):
        above.set_title(panel.title, fontsize=14)
        for axis, view, name in ((above, view_a, 'view a'), (below, view_b, 'view b')):
            axis.imshow(view)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_ylabel(name, fontsize=12)
        start = _centers_on_grid(grid_a) * _grid_cell_size(view_a, grid_a) - 0.5
        end = _centers_on_grid(grid_b)[panel.match.cpu()] * _grid_cell_size(view_b, grid_b) - 0.5
        for location in locations.tolist():
            right = bool(panel.errors[location] <= tolerance)
            _draw_line(
                figure,
                (above, start[location].tolist()),
                (below, end[location].tolist()),
                colours.to_rgba(float(panel.similarity[location])),
                right,
            )
    bar = figure.colorbar(colours, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label('similarity of the two locations (cosine)', fontsize=12)
    near = f'ends within {tolerance:g} grid cell of the true place'
    figure.legend(
        handles=[
            Line2D([], [], color='0.2', lw=2.5, marker='o', label=near),
            Line2D([], [], color='0.2', lw=1.8, ls='--', marker='X', label='ends elsewhere'),
        ],
        loc='outside lower center',
        ncols=2,
        fontsize=12,
        frameon=False,
    )
    if path is not None:
        figure.savefig(path)
    return figure


def _centers_on_grid(grid: Tuple[int, int]) -> Tensor:
    """Return the centers of a grid's cells, S×2, (x, y): 0.5, 1.5, …"""
    whole = torch.tensor([[0, 0, grid[1], grid[0]]], dtype=torch.float64)
    return grid_centers(whole, grid)[0]


def _spread(errors: Tensor, max_lines: int) -> Tensor:
    """Return the indices of at most so many of the locations that are in both views."""
    locations = torch.nonzero(~errors.isnan()).flatten()
    if len(locations) <= max_lines:
        return locations
    return locations[torch.linspace(0, len(locations) - 1, max_lines).round().long()]


def _grid_cell_size(view: np.ndarray, grid: Tuple[int, int]) -> Tensor:
    """Return (width, height) of a grid cell in pixels."""
    return torch.tensor([view.shape[1] / grid[1], view.shape[0] / grid[0]])


def _draw_line(figure, start, end, colour, right) -> None:
    """Draw a line across two axes; ``start`` and ``end`` are (axes, point)."""
    width = 2.4 if right else 1.4
    # Black in white: seen on any photograph.
    outline = [
        withStroke(linewidth=width + w, foreground=c) for w, c in ((3, 'white'), (1.4, 'black'))
    ]
    line = ConnectionPatch(
        start[1],
        end[1],
        'data',
        'data',
        axesA=start[0],
        axesB=end[0],
        color=colour,
        lw=width,
        ls='-' if right else (0, (4, 2)),
        path_effects=outline,
    )
    line.set_in_layout(False)
    figure.add_artist(line)
    for axis, (x, y) in (start, end):
        axis.plot(
            x,
            y,
            'o' if right or axis is start[0] else 'X',
            color=colour,
            markersize=9,
            markeredgecolor='white',
            zorder=3,
        )
