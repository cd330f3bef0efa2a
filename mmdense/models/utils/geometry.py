# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Relate the locations of two views by their boxes.

A view is a signed box ``(x0, y0, x1, y1)`` of its image, in [0, 1] by width and
height; x0 > x1 says that it is mirrored, y0 > y1 that it is upside down. A
view's map has S = H·W locations, numbered row by row. Nothing here has a gradient
but :func:`align_maps`, which has one for the maps. All arithmetic on boxes is
in this file; transforms of images make the boxes.
"""

from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from mmdense.utils.errors import InputError

from .float32 import in_float32

Grid = Tuple[int, int]


def view_boxes(data_samples: Sequence, num_views: int, like: Tensor) -> List[Tensor]:
    """Return the boxes of a batch's views from its data samples.

    Args:
        data_samples (Sequence[DataSample]): N, each with ``view_boxes``, V×4,
            as :class:`mmdense.datasets.MultiView` makes it and PackInputs
            packs it.
        num_views (int): V.
        like (Tensor): The boxes go to its device.

    Returns:
        List[Tensor]: V tensors N×4, float32.

    Raises:
        InputError: When a sample has no boxes, or not V.
    """
    try:
        boxes = [torch.as_tensor(sample.view_boxes) for sample in data_samples]
    except (AttributeError, TypeError):
        raise InputError(
            "the data samples carry no boxes of the views: use mmdense's RandomResizedCrop, "
            "RandomFlip and MultiView in the training pipeline, and list 'view_boxes' in the "
            'meta_keys of PackInputs'
        ) from None
    if any(box.shape != (num_views, 4) for box in boxes):
        shapes = sorted({tuple(box.shape) for box in boxes})
        raise InputError(f'view_boxes must be {num_views}×4, one box a view, got {shapes}')
    # one copy to the device for the batch
    return list(torch.stack(boxes, dim=1).float().to(like.device, non_blocking=True))


def grid_centers(box: Tensor, grid: Grid) -> Tensor:
    """Return the centers of a view's grid cells in the image.

    Args:
        box (Tensor): N×4, signed boxes.
        grid (tuple[int, int]): Rows H and columns W of the grid.

    Returns:
        Tensor: N×(H·W)×2, (x, y) in the coordinates of the box.
    """
    rows, columns = (torch.arange(n, dtype=box.dtype, device=box.device) + 0.5 for n in grid)
    y, x = torch.meshgrid(rows / grid[0], columns / grid[1], indexing='ij')
    fraction = torch.stack([x, y], dim=-1).flatten(0, 1)  # Sx2, in the view
    return from_view(fraction.expand(len(box), -1, -1), box)


def from_view(points: Tensor, box: Tensor) -> Tensor:
    """Map points of a view, in fractions of its sides, to image coordinates.

    Args:
        points (Tensor): N×M×2, (x, y); the view is [0, 1]².
        box (Tensor): N×4, signed boxes.

    Returns:
        Tensor: N×M×2.
    """
    start, end = box[:, None, :2], box[:, None, 2:]
    return start + points * (end - start)


def to_view(points: Tensor, box: Tensor) -> Tensor:
    """Invert :func:`from_view`: map image coordinates to fractions of a
    view's sides, outside [0, 1] for points that the view does not show."""
    start, end = box[:, None, :2], box[:, None, 2:]
    return (points - start) / (end - start)


def grid_distances(box_q: Tensor, box_k: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor:
    """Return the distance of every location of one view to every location of the other.

    It is between centers in the image, divided by the larger of the two grid cells'
    diagonals. PixPro (https://arxiv.org/abs/2011.10043), equation 1.

    Args:
        box_q, box_k (Tensor): N×4, signed boxes.
        grid_q, grid_k (tuple[int, int]): Cells, S and T in all.

    Returns:
        Tensor: N×S×T, 0 for locations in the same place.
    """
    centre_q, centre_k = grid_centers(box_q, grid_q), grid_centers(box_k, grid_k)
    dx = centre_q[:, :, None, 0] - centre_k[:, None, :, 0]
    dy = centre_q[:, :, None, 1] - centre_k[:, None, :, 1]
    diagonal = torch.maximum(_grid_diagonal(box_q, grid_q), _grid_diagonal(box_k, grid_k))
    # dx and dy are not needed again; torch.cdist would lose digits to a matrix product
    return dx.square_().add_(dy.square_()).sqrt_().div_(diagonal[:, None, None])


def match_by_boxes(
    box_q: Tensor, box_k: Tensor, grid_q: Grid, grid_k: Grid
) -> Tuple[Tensor, Tensor]:
    """Return the grid cell of one view that holds the center of each location of the other.

    The rule is ours, for LC-loss (https://arxiv.org/abs/2207.04398): the paper's abstract says that
    the crops tell which locations correspond. It is not symmetric. Equal boxes on equal grids give
    the identity.

    Args:
        box_q, box_k (Tensor): N×4, signed boxes.
        grid_q, grid_k (tuple[int, int]): Rows and columns; S and T locations in all.

    Returns:
        tuple[Tensor, Tensor]: N×S int64, indices into the T locations, 0 where there is no match;
        and N×S bool, whether the other view shows the center.
    """
    place = to_view(grid_centers(box_q, grid_q), box_k)  # NxSx2, (x, y)
    shown = ((place >= 0) & (place < 1)).all(dim=2)
    rows, columns = grid_k
    # below 1, and in float32 perhaps the last one's end times the number of them
    column = (place[..., 0] * columns).floor().clamp(0, columns - 1).long()
    row = (place[..., 1] * rows).floor().clamp(0, rows - 1).long()
    return torch.where(shown, row * columns + column, 0), shown


def _grid_diagonal(box: Tensor, grid: Grid) -> Tensor:
    """Return the N diagonals of a view's grid cell in the image."""
    width, height = (box[:, 2] - box[:, 0]) / grid[1], (box[:, 3] - box[:, 1]) / grid[0]
    return torch.hypot(width, height)


def is_flipped(box: Tensor) -> Tuple[Tensor, Tensor]:
    """Return whether views are mirrored, and whether they are upside down.

    Args:
        box (Tensor): N×4, signed boxes.

    Returns:
        tuple[Tensor, Tensor]: N and N, bool.
    """
    return box[:, 0] > box[:, 2], box[:, 1] > box[:, 3]


def overlap_in_view(box: Tensor, other: Tensor) -> Tensor:
    """Return the part of a view that another view shows too.

    Args:
        box (Tensor): N×4, signed boxes of the view.
        other (Tensor): N×4, those of the other.

    Returns:
        Tensor: N×4, ``(x0, y0, x1, y1)`` with x0 ≤ x1 and y0 ≤ y1 as the view
        itself shows it (mirrored where it is), in fractions of its sides.
        Without overlap x0 > x1 or y0 > y1.
    """
    low, high = torch.minimum(box[:, :2], box[:, 2:]), torch.maximum(box[:, :2], box[:, 2:])
    low_other = torch.minimum(other[:, :2], other[:, 2:])
    high_other = torch.maximum(other[:, :2], other[:, 2:])
    start, end = torch.maximum(low, low_other), torch.minimum(high, high_other)
    # in the unflipped frame of the view, then from the other side where it is flipped
    start, end = (start - low) / (high - low), (end - low) / (high - low)
    flipped = torch.stack(is_flipped(box), dim=1)
    start, end = torch.where(flipped, 1 - end, start), torch.where(flipped, 1 - start, end)
    return torch.cat([start, end], dim=1)


def views_overlap(box: Tensor, other: Tensor) -> Tensor:
    """Return whether two views share a part of positive area.

    Args:
        box (Tensor): N×4, signed boxes of the view.
        other (Tensor): N×4, those of the other.

    Returns:
        Tensor: N, bool.
    """
    overlap = overlap_in_view(box, other)
    return (overlap[:, :2] < overlap[:, 2:]).all(dim=1)


def boxes_in_view(boxes: Tensor, view: Tensor) -> Tensor:
    """Map boxes of an image into a view.

    Args:
        boxes (Tensor): N×R×4, (x0, y0, x1, y1) in image coordinates.
        view (Tensor): N×4, signed boxes of the view.

    Returns:
        Tensor: N×R×4, in fractions of the view's sides, with x0 ≤ x1 and y0 ≤ y1 as the view shows
        them (mirrored if the view is). They are not cut at the view's borders, [0, 1].
    """
    start, end = to_view(boxes[..., :2], view), to_view(boxes[..., 2:], view)
    return torch.cat([torch.minimum(start, end), torch.maximum(start, end)], dim=-1)


def boxes_on_grid(boxes: Tensor, grid: Grid) -> Tensor:
    """Cut boxes at their view's borders, for RoIAlign on the view's map.

    Args:
        boxes (Tensor): N×R×4, as :func:`boxes_in_view` returns them.
        grid (tuple[int, int]): Rows H and columns W of the map.

    Returns:
        Tensor: N×R×4, (x0, y0, x1, y1) in columns and rows of the map, within [0, W] and [0, H].
    """
    # Above the map's size by one rounding, RoIAlign would take another number of samples.
    x, y = ((boxes[..., i::2] * side).clamp(0, side) for i, side in enumerate(grid[::-1]))
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def visible_share(boxes: Tensor) -> Tensor:
    """Return the share of the area of boxes that is inside of their view.

    Args:
        boxes (Tensor): N×R×4, as :func:`boxes_in_view` returns them.

    Returns:
        Tensor: N×R, in [0, 1]; 0 for boxes without an area.
    """
    inside = boxes.clamp(0, 1)
    area, shown = (((b[..., 2:] - b[..., :2]).prod(dim=-1)) for b in (boxes, inside))
    return torch.where(area > 0, shown / area, torch.zeros_like(area))


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of boxes, element by element.

    Args:
        boxes (Tensor): …×4, (x0, y0, x1, y1) with x0 ≤ x1 and y0 ≤ y1.
        others (Tensor): …×4, of a shape that broadcasts with that of ``boxes``.

    Returns:
        Tensor: …, in [0, 1]; NaN where both boxes have no area.
    """
    start = torch.maximum(boxes[..., :2], others[..., :2])
    end = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (end - start).clamp(min=0).prod(dim=-1)
    area, other = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (boxes, others))
    return shared / (area + other - shared)


# Largest H·W whose sampling is one matrix of (H·W)². Its time over that of two matrices, one for
# each side, forward and backward, 256 channels, one thread: 0.25 at 7×7, 0.69 at 10×10, 0.99 at
# 12×12, 1.56 at 14×14, 4.8 at 28×28.
_ONE_MATRIX = 12**2


@in_float32
def align_maps(maps: Tensor, box: Tensor, other: Tensor) -> Tensor:
    """Cut what two views share out of one view's maps: location by location the same
    place as ``align_maps`` of the other's.

    SlotCon (https://arxiv.org/abs/2205.15288), section 3.2: RoIAlign of the
    overlap, one sample a location, then the flip undone. Sampling is linear in the maps: it is a
    product with a matrix for each image. At 7×7 that takes a tenth of RoIAlign's time on a CPU,
    and no gradient is summed in a random order on a GPU.

    Args:
        maps (Tensor): N×C×H×W, of the view.
        box (Tensor): N×4, signed boxes of the view.
        other (Tensor): N×4, those of the other.

    Returns:
        Tensor: N×C×H×W, in the image's orientation; zeros for images whose
        views do not overlap.
    """
    height, width = maps.shape[2:]
    overlap = overlap_in_view(box, other)
    mirrored, upside_down = is_flipped(box)
    rows = _samples(overlap[:, 1], overlap[:, 3], upside_down, height)  # NxHxH
    columns = _samples(overlap[:, 0], overlap[:, 2], mirrored, width)  # NxWxW
    # in the boxes' precision: half would move them by a hundredth of a grid cell
    maps = maps.to(box.dtype)
    channels_last = not maps.is_contiguous() and maps.is_contiguous(
        memory_format=torch.channels_last
    )
    if channels_last:
        maps = maps.permute(0, 2, 3, 1)  # NxHxWxC, whose products need no copy
    if height * width > _ONE_MATRIX:
        if channels_last:
            aligned = torch.bmm(rows, maps.flatten(2)).view_as(maps)
            aligned = torch.matmul(columns[:, None], aligned)
        else:
            aligned = torch.bmm(maps.flatten(1, 2), columns.transpose(1, 2)).view_as(maps)
            aligned = torch.matmul(rows[:, None], aligned)
    else:
        both = rows[:, :, None, :, None] * columns[:, None, :, None, :]  # NxHxWxHxW
        both = both.flatten(3).flatten(1, 2)  # NxSxS
        if channels_last:
            aligned = torch.bmm(both, maps.flatten(1, 2)).view_as(maps)
        else:
            aligned = torch.bmm(maps.flatten(2), both.transpose(1, 2)).view_as(maps)
    return aligned.permute(0, 3, 1, 2) if channels_last else aligned


def _samples(start: Tensor, end: Tensor, flipped: Tensor, cells: int) -> Tensor:
    """Return the weights by which the cells of one side are sampled at as many points of a part.

    Args:
        start (Tensor): N, where the part begins, in fractions of the side; cut at 0 and 1.
        end (Tensor): N, where it ends; without a length the weights are 0.
        flipped (Tensor): N, bool: from the end to the start.
        cells (int): L.

    Returns:
        Tensor: N×L×L, points by cells: linear between the centers of two cells.
    """
    start, end = start.clamp(0, 1), end.clamp(0, 1)
    some = (start < end)[:, None, None]
    start, end = torch.where(flipped, end, start), torch.where(flipped, start, end)
    cell = torch.arange(cells, dtype=start.dtype, device=start.device)
    fraction = (cell + 0.5) / cells
    point = (start[:, None] + fraction * (end - start)[:, None]) * cells - 0.5
    distance = point.clamp(0, cells - 1)[:, :, None] - cell
    return (1 - distance.abs()).clamp(min=0) * some
