# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Region vectors: features of a view's map in boxes of the image, or in masks.

Images have different numbers of boxes. A batch is padded to R of them, and a mask N×R says which
ones count; nothing here asks the device for a value.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.dist import all_gather
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import roi_align

from mmdense.models.utils.float32 import in_float32
from mmdense.models.utils.geometry import (
    box_iou,
    boxes_in_view,
    boxes_on_grid,
    view_boxes,
    visible_share,
)
from mmdense.utils.errors import InputError


def stack_proposals(data_samples: Sequence, like: Tensor) -> Tuple[Tensor, Tensor]:
    """Stack the proposals of a batch's data samples.

    Args:
        data_samples (Sequence[DataSample]): N, each with ``proposals``, R_n×4, as
            :class:`mmdense.datasets.LoadProposals` makes it and PackInputs packs it.
        like (Tensor): The result goes to its device.

    Returns:
        tuple[Tensor, Tensor]: Boxes N×R×4 float32 in image coordinates, with R the largest R_n, and
        N×R bool, False for padding.

    Raises:
        InputError: A sample has no proposals.
    """
    found = [getattr(sample, 'proposals', None) for sample in data_samples]
    if not all(isinstance(boxes, Tensor) for boxes in found):
        raise InputError(
            "the data samples carry no proposals: put LoadProposals after LoadImage, and mmdense's "
            'PackInputs at the end of the training pipeline'
        )
    if not found:
        return like.new_zeros(0, 0, 4), like.new_zeros(0, 0, dtype=torch.bool)
    # a fifth column of ones becomes the mask
    marked = [pad(boxes.float(), (0, 1), value=1.0) for boxes in found]
    padded = pad_sequence(marked, batch_first=True).to(like.device, non_blocking=True)
    return padded[..., :4], padded[..., 4] > 0


class SharedRegions(NamedTuple):
    """Hold the regions that both views of each image show.

    Attributes:
        query, key (Tensor): Boxes N×R×4, (x0, y0, x1, y1) in pixels of the two views, in the order
            of the proposals; padding comes last.
        exists (Tensor): N×R bool, False for padding. R is the same in all processes.
        counts (list[list[int]]): Number of regions of each image, by process.
    """

    query: Tensor
    key: Tensor
    exists: Tensor
    counts: List[List[int]]

    def pairs_apart(self, max_iou: float) -> Tensor:
        """Return N×R×R bool: pairs of regions whose IoU in the key view is below a limit."""
        exists = self.exists[:, :, None] & self.exists[:, None]
        return exists & (box_iou(self.key[:, :, None], self.key[:, None]) < max_iou)


@torch.no_grad()
def find_shared_regions(
    data_samples: Optional[Sequence],
    view: Tensor,
    min_visible: float = 0.6,
    min_area: float = 144,
) -> SharedRegions:
    """Map the proposals of a batch into both views, and keep those that both views show.

    CCOP (https://arxiv.org/abs/2111.13651), by its released code: more than ``min_visible`` of a
    proposal's area is inside of each view, and more than ``min_area`` pixels of it. A box is cut at
    the view's borders; the right and lower borders lose one pixel.

    The host waits here for the device to count the regions, of all processes.

    Args:
        data_samples (Sequence[DataSample]): N, each with ``proposals`` and ``view_boxes``, 2×4.
        view (Tensor): N×C×H×W, whose size both views have.
        min_visible (float): In [0, 1). Defaults to 0.6.
        min_area (float): In pixels of the view. Defaults to 144.
    """
    boxes, exists = stack_proposals(data_samples or (), like=view)
    height, width = view.shape[2:]
    sides = []  # N×R×2: x and y of the query view, x and y of the key view
    for box in view_boxes(data_samples, 2, like=view):
        shown = boxes_in_view(boxes, box)
        inside = boxes_on_grid(shown, (height, width))
        area = (inside[..., 2:] - inside[..., :2]).prod(dim=-1)
        exists = exists & (visible_share(shown) > min_visible) & (area > min_area)
        sides += [inside[..., i::2].clamp(max=n - 1) for i, n in enumerate((width, height))]
    counts = torch.stack(all_gather(exists.sum(1))).tolist()

    # as much padding as the image with the most regions needs
    most = max(1, max(map(max, counts)))
    order = exists.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    sides = [side.take_along_dim(order[:, :, None], dim=1) for side in sides]
    query, key = (torch.stack(xy, dim=-1).flatten(2) for xy in (sides[:2], sides[2:]))
    exists = exists.gather(1, order)
    missing = most - order.size(1)  # where another process has more proposals
    if missing > 0:
        query, key = (pad(x, (0, 0, 0, missing)) for x in (query, key))
        exists = pad(exists, (0, missing))
    return SharedRegions(query, key, exists, counts)


def pool_boxes(
    maps: Tensor,
    boxes: Tensor,
    view: Tensor,
    exists: Optional[Tensor] = None,
    size: int = 1,
    min_visible: float = 0.0,
) -> Tuple[Tensor, Tensor]:
    """Pool a view's maps in boxes of the image, by RoIAlign.

    A box is cut at the view's borders. With size > 1 its bins are in the view's orientation: a
    mirrored view has them mirrored.

    Args:
        maps (Tensor): N×C×H×W, of the view.
        boxes (Tensor): N×R×4, (x0, y0, x1, y1) in image coordinates.
        view (Tensor): N×4, signed boxes of the view.
        exists (Tensor, optional): N×R bool, False for padding. Defaults to None, all count.
        size (int): Bins along each side of a box. Defaults to 1, the mean over the box.
        min_visible (float): A region is valid if more than this share of its box's area is inside
            of the view. Defaults to 0, any of it.

    Returns:
        tuple[Tensor, Tensor]: Regions N×R×(C·size²), channel first, in the boxes' precision, with
        gradients for the maps alone; N×R bool, which of them are valid. The others are 0.
    """
    number, channels, height, width = maps.shape
    if boxes.dim() != 3 or boxes.shape[::2] != (number, 4) or view.shape != (number, 4):
        raise InputError(
            f'pool_boxes takes maps N×C×H×W, boxes N×R×4 and a view N×4, got {tuple(maps.shape)}, '
            f'{tuple(boxes.shape)} and {tuple(view.shape)}'
        )
    per_image = boxes.size(1)
    with torch.no_grad():
        shown = boxes_in_view(boxes, view)
        valid = visible_share(shown) > min_visible
        if exists is not None:
            valid = valid & exists
        cut = boxes_on_grid(shown, (height, width))
        # The others become a point in the corner: RoIAlign takes time by the area.
        cut = torch.where(valid[..., None], cut, torch.zeros_like(cut)).flatten(0, 1)
        index = torch.arange(number, dtype=cut.dtype, device=cut.device)
        rois = torch.cat([index.repeat_interleave(per_image)[:, None], cut], dim=1)
    # in the boxes' precision: half would move them by a hundredth of a location
    pooled = roi_align(maps.to(boxes.dtype), rois, size, sampling_ratio=-1, aligned=True)
    regions = pooled.view(number, per_image, channels * size**2)
    return torch.where(valid[..., None], regions, torch.zeros_like(regions)), valid


# Largest sides of the boxes, in pixels, that take the maps of strides 4, 8 and 16.
LEVEL_LIMITS = (48, 96, 192)


def pyramid_levels(boxes: Tensor, limits: Sequence[float] = LEVEL_LIMITS) -> Tensor:
    r"""Return the level of a pyramid that each box is pooled from, by the box's size.

    CCOP (https://arxiv.org/abs/2111.13651), by its released code: :math:`s = \sqrt{w h}` in pixels
    of the view; the first level whose limit is at least s. A box above all limits takes the last
    level.

    Args:
        boxes (Tensor): …×4, (x0, y0, x1, y1) in pixels.
        limits (Sequence[float]): L − 1 limits, rising. Defaults to 48, 96 and 192.

    Returns:
        Tensor: …, int64 in [0, L).
    """
    side = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).sqrt()
    return sum((side > limit).long() for limit in limits)


def pool_pyramid(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    size: int = 7,
    limits: Sequence[float] = LEVEL_LIMITS,
) -> Tensor:
    """Pool boxes from a pyramid of maps by RoIAlign, each from the level of its size.

    Nothing asks the device for the number of boxes of a level: each level takes all boxes, those
    of other levels without an area, which RoIAlign gives zeros for in no time.

    Args:
        maps (Sequence[Tensor]): L maps N×C×H×W, of strides 4, 8, 16, ….
        boxes (Tensor): M×4, (x0, y0, x1, y1) in pixels of the view.
        image (Tensor): M int64, the row of the maps that a box is in.
        size (int): Bins along each side of a box. Defaults to 7.
        limits (Sequence[float]): See :func:`pyramid_levels`.

    Returns:
        Tensor: M×(C·size²) float32, channel first, with gradients for all maps.
    """
    level = pyramid_levels(boxes, limits)[:, None]
    pooled = []
    for i, part in enumerate(maps):
        own = torch.where(level == i, boxes, torch.zeros_like(boxes))
        rois = torch.cat([image[:, None].to(own.dtype), own], dim=1)
        # in float32: half would move the boxes by a hundredth of a location
        pooled.append(
            roi_align(part.float(), rois, size, 1 / 2 ** (i + 2), sampling_ratio=-1, aligned=True)
        )
    return sum(pooled).flatten(1)


@in_float32
def pool_masks(maps: Tensor, masks: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the mean of a view's maps over each mask.

    Args:
        maps (Tensor): N×C×H×W, of the view.
        masks (Tensor): N×R×H×W, bool or weights of at least 0, in the view at the map's size.

    Returns:
        tuple[Tensor, Tensor]: Regions N×R×C float32; N×R bool, False for masks without a location,
        whose regions are 0.
    """
    if masks.dim() != 4 or maps.shape != (len(masks), maps.size(1), *masks.shape[2:]):
        raise InputError(
            f'pool_masks takes maps N×C×H×W and masks N×R×H×W, got {tuple(maps.shape)} and '
            f'{tuple(masks.shape)}'
        )
    weights = masks.flatten(2).to(maps.dtype)  # N×R×S
    total = weights.sum(dim=2, keepdim=True)
    valid = total > 0
    regions = weights @ maps.flatten(2).transpose(1, 2)  # N×R×C
    regions = regions / torch.where(valid, total, torch.ones_like(total))
    return regions, valid.squeeze(2)
