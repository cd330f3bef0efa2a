# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Region vectors: features of a view's map in boxes of the image, or in masks.

Images have different numbers of boxes. A batch is padded to R of them, and a mask N×R says which
ones count; nothing here asks the device for a value.
"""

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor
from torchvision.ops import roi_align

from mmdense.models.utils.float32 import in_float32
from mmdense.models.utils.geometry import boxes_in_view, boxes_on_grid, visible_share
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
    most = max(map(len, found), default=0)
    boxes = torch.stack([_pad(one, most) for one in found]) if found else torch.zeros(0, 0, 4)
    counts = torch.tensor([len(one) for one in found])
    exists = torch.arange(most) < counts[:, None]
    return (
        boxes.float().to(like.device, non_blocking=True),
        exists.to(like.device, non_blocking=True),
    )


def _pad(boxes: Tensor, length: int) -> Tensor:
    return torch.cat([boxes, boxes.new_zeros(length - len(boxes), 4)])


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
