# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.utils.geometry import box_iou
from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts, check_number
from mmdense.utils.errors import InputError


class Difficulty(NamedTuple):
    """Hold how far the copies of a box may be from the box at one step.

    Attributes:
        threshold (float): θ, the least IoU of a valid copy.
        shift (float): a, the range of the center's shift, in widths and heights of the box.
        scale (float): b, the range of the logarithm of the size's ratio.
    """

    threshold: float
    shift: float
    scale: float


@MODELS.register_module()
class BoxCurriculum(nn.Module):
    r"""Draw noisy copies of boxes, the noisier the longer the run lasts.

    The curriculum of CCOP (https://arxiv.org/abs/2111.13651), by its released code. All three
    values go linearly from their first to their second number over the run. With u uniform in
    [0, 1), a copy has the center :math:`c + (u_{xy} - 1/2)\, a\, (w, h)` and the size
    :math:`(w, h) \exp((u_{wh} - 1/2)\, b)`; it is cut at the view's borders. Randomness is
    PyTorch's.

    Args:
        copies (int): J, copies of a box. Defaults to 10.
        threshold (Sequence[float]): θ at the first and at the last step, in [0, 1]. Defaults to
            (0.8, 0.4).
        shift (Sequence[float]): a, at least 0. Defaults to (0.15, 0.6).
        scale (Sequence[float]): b, at least 0. Defaults to (0.35, 1.4).
    """

    def __init__(
        self,
        copies: int = 10,
        threshold: Sequence[float] = (0.8, 0.4),
        shift: Sequence[float] = (0.15, 0.6),
        scale: Sequence[float] = (0.35, 1.4),
    ) -> None:
        super().__init__()
        check_counts(copies=copies)
        for name, pair in dict(threshold=threshold, shift=shift, scale=scale).items():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise InputError(f'{name} has a first and a last value, got {pair!r}')
            for value in pair:
                most = 1 if name == 'threshold' else float('inf')
                check_number(
                    name, value, lambda x, most=most: 0 <= x <= most, f'at least 0, at most {most}'
                )
        self.copies = copies
        self.threshold, self.shift, self.scale = tuple(threshold), tuple(shift), tuple(scale)

    def at(self, progress: float) -> Difficulty:
        """Return the values at a share of the run, 0 to 1."""
        ranges = (self.threshold, self.shift, self.scale)
        return Difficulty(*(first + progress * (last - first) for first, last in ranges))

    def draw(self, boxes: Tensor) -> Tuple[Tensor, Tensor]:
        """Draw the random numbers of the copies of boxes …×4: the shift's and the scale's, each
        …×J×2 in [0, 1)."""
        return torch.rand(2, *boxes.shape[:-1], self.copies, 2, device=boxes.device).unbind()

    def forward(
        self, boxes: Tensor, size: Tuple[int, int], progress: float
    ) -> Tuple[Tensor, Tensor]:
        """Return copies of boxes, and which of them are too far from their box.

        Args:
            boxes (Tensor): …×4, (x0, y0, x1, y1) in pixels of a view.
            size (tuple[int, int]): Height and width of the view.
            progress (float): Share of the run, 0 to 1.

        Returns:
            tuple[Tensor, Tensor]: …×(J + 1)×4, the last one the box itself; …×(J + 1) bool, True
            where the IoU with the box is below θ, never for the last one.
        """
        difficulty = self.at(progress)
        shift, scale = self.draw(boxes)
        sides = (boxes[..., 2:] - boxes[..., :2])[..., None, :]
        center = (boxes[..., 2:] + boxes[..., :2])[..., None, :] / 2
        center = center + (shift - 0.5) * difficulty.shift * sides
        half = sides * ((scale - 0.5) * difficulty.scale).exp() / 2
        copies = torch.cat([center - half, center + half], dim=-1)
        x, y = (copies[..., i::2].clamp(0, side) for i, side in enumerate(size[::-1]))
        copies = torch.stack([x, y], dim=-1).flatten(-2)
        copies = torch.cat([copies, boxes[..., None, :]], dim=-2)
        return copies, box_iou(copies, boxes[..., None, :]) < difficulty.threshold


@torch.no_grad()
def hardest_copies(query: Tensor, keys: Tensor, invalid: Tensor) -> Tensor:
    """Return the key of the least similar valid copy of each region, the first among equals.

    Args:
        query (Tensor): M×C, normalised.
        keys (Tensor): M×J×C, of the copies, normalised.
        invalid (Tensor): M×J bool, not all True in a row.

    Returns:
        Tensor: M×C.
    """
    similarity = (keys @ query.to(keys.dtype)[:, :, None]).squeeze(2)  # MxJ
    hardest = (similarity + 5 * invalid).argmin(1)
    return keys.gather(1, hardest[:, None, None].expand(-1, 1, keys.size(2))).squeeze(1)
