# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import prod
from typing import Optional, Tuple, Union

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.losses import pixel_consistency, pixel_contrast
from mmdense.models.necks import ProjectionMLP
from mmdense.models.utils import (
    grid_distances,
    in_float32,
    match_by_boxes,
    negative_similarity,
    unit_vectors,
)
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero, check_below_one, check_counts
from mmdense.utils.errors import InputError


class PixelHead(BaseModule):
    """Find positive pairs, locations that are close in the image, for PixPro and PixContrast.

    Args:
        pos_ratio (float, optional): Largest distance of the centres of a positive pair,
            in diagonals of the larger grid cell (exclusive). None: each location has one positive,
            the target's grid cell that holds its center, as in LC-loss. Defaults to 0.7.
        init_cfg (dict or list[dict], optional): As everywhere.
    """

    def __init__(
        self, pos_ratio: Optional[float] = 0.7, init_cfg: Optional[Union[dict, list]] = None
    ) -> None:
        super().__init__(init_cfg)
        if pos_ratio is not None:
            check_above_zero(pos_ratio=pos_ratio)
        self.pos_ratio = pos_ratio

    @in_float32
    def loss(self, z: Tensor, target: Tensor, box: Tensor, target_box: Tensor) -> Tensor:
        """Compute one direction, from a view of the student to the other view of the teacher.

        Args:
            z (Tensor): N×C×H×W, the student's projections.
            target (Tensor): N×C×H'×W', the teacher's of the other view.
            box (Tensor): N×4, signed boxes of the student's view.
            target_box (Tensor): N×4, of the teacher's.

        Returns:
            Tensor: A scalar.
        """
        positive = self.find_positives(box, target_box, z.shape[2:], target.shape[2:])
        return self.compare(z, _grid(target), positive)

    def find_positives(
        self, box: Tensor, target_box: Tensor, grid: Tuple[int, int], target_grid: Tuple[int, int]
    ) -> Tensor:
        """Return which pairs of locations are positive.

        Args:
            box, target_box (Tensor): N×4, signed boxes of the views.
            grid, target_grid (tuple[int, int]): Rows and columns; S and T locations in all.

        Returns:
            Tensor: N×S×T, bool.
        """
        boxes_and_grids = box, target_box, grid, target_grid
        if self.pos_ratio is not None:
            return grid_distances(*boxes_and_grids) < self.pos_ratio
        match, shown = match_by_boxes(*boxes_and_grids)
        target_location = torch.arange(prod(target_grid), device=match.device)
        return (match[:, :, None] == target_location) & shown[:, :, None]

    def similarities(self, z: Tensor, target: Tensor, box: Tensor, target_box: Tensor) -> dict:
        """Return what the health monitor logs of one direction, as functions.

        Args:
            z (Tensor): N×C×H×W, as in :meth:`loss`.
            target (Tensor): N×C×H'×W'.
            box (Tensor): N×4.
            target_box (Tensor): N×4.

        Returns:
            Dict[str, Callable]: Mean cosine of positive pairs and of different images, and the
            share of images without a positive pair.
        """

        def find() -> Tensor:
            return self.find_positives(box, target_box, z.shape[2:], target.shape[2:])

        def compare_positives() -> Tensor:
            positive = find()
            cosine = torch.bmm(_grid(z).float().transpose(1, 2), _grid(target).float())
            return torch.where(positive, cosine, 0).sum() / positive.sum()

        return dict(
            dense_positive_similarity=compare_positives,
            dense_negative_similarity=lambda: negative_similarity(_grid(z), _grid(target)),
            without_positive=lambda: (~find().flatten(1).any(1)).float().mean(),
        )

    def compare(self, z: Tensor, target: Tensor, positive: Tensor) -> Tensor:
        """Return the loss, given N×S×T positive pairs and N×C×T normalised targets."""
        raise NotImplementedError


@MODELS.register_module()
class PixContrastHead(PixelHead):
    """Contrast locations, the predecessor of PixPro in the same paper:
    :func:`mmdense.models.losses.pixel_contrast`.

    `Propagate Yourself <https://arxiv.org/abs/2011.10043>`_ (CVPR 2021),
    section 3.1.

    Args:
        temperature (float): τ, above 0. Defaults to 0.3.
        pos_ratio (float, optional): As in :class:`PixelHead`. Defaults to 0.7.
    """

    def __init__(self, temperature: float = 0.3, pos_ratio: Optional[float] = 0.7) -> None:
        super().__init__(pos_ratio)
        check_above_zero(temperature=temperature)
        self.temperature = temperature

    def compare(self, z: Tensor, target: Tensor, positive: Tensor) -> Tensor:
        """Return the loss, see :class:`PixelHead`."""
        return pixel_contrast(_grid(z), target, positive, self.temperature)


@MODELS.register_module()
class LocalContrastHead(PixContrastHead):
    """Contrast each location with its place in the other view (the local loss of LC-loss).

    `Self-Supervised Learning with Local Contrastive Loss for Detection and Semantic Segmentation
    <https://arxiv.org/abs/2207.04398>`_ (WACV 2023). The authors have published no code. By the
    abstract, locations of two views that show the same place are contrasted, and the crops tell
    which those are. **Ours** are the match (:func:`mmdense.models.utils.match_by_boxes`), the
    predictor, the negatives, which are the other locations of the same view, and τ.

    Args:
        predictor (dict, optional): :class:`mmdense.models.necks.ProjectionMLP` on the projections
            of the online network. None: the projections themselves are compared.
        temperature (float): τ, above 0. Defaults to 0.1.
    """

    def __init__(self, predictor: Optional[dict] = None, temperature: float = 0.1) -> None:
        super().__init__(temperature, pos_ratio=None)
        self.predictor = predictor and MODELS.build(predictor)

    def loss(self, z: Tensor, target: Tensor, box: Tensor, target_box: Tensor) -> Tensor:
        """Compute one direction, :func:`mmdense.models.losses.pixel_contrast`.

        Args:
            z (Tensor): N×C×H×W, projections of a view by the online network.
            target (Tensor): N×C×H'×W', projections of the other view, a constant.
            box (Tensor): N×4, signed boxes of the first view.
            target_box (Tensor): N×4, of the other.

        Returns:
            Tensor: A scalar of at least 0, the mean over images. An image whose views do not
            overlap counts as 0.
        """
        prediction = z if self.predictor is None else self.predictor(z)
        return super().loss(prediction, target, box, target_box)


@MODELS.register_module()
class PixProHead(PixelHead):
    r"""Compare propagated pixels with the teacher's (pixel-to-propagation consistency).

    `Propagate Yourself <https://arxiv.org/abs/2011.10043>`_ (CVPR 2021),
    section 3.2: each of the student's locations is replaced by what similar locations
    of its view pass on to it (equations 3 and 4),

    .. math:: y_i = \sum_j \max(\cos(z_i, z_j), \mathrm{clamp})^p \, g(z_j)

    and that is compared with the teacher's locations in the same place
    (:func:`mmdense.models.losses.pixel_consistency`).

    Args:
        in_channels (int): Channels C of the projections. Defaults to 256.
        num_layers (int): Layers of the transform g, whose output is
            normalised: 0 (none), 1 (1×1 convolution) or 2 (convolution, BN,
            ReLU, convolution). Defaults to 1.
        power (float): p, above 0: the larger, the more local. Defaults to 2.
        clamp (float): Least similarity that counts. Defaults to 0.
        pos_ratio (float, optional): As in :class:`PixelHead`. Defaults to 0.7.
        norm_cfg (dict): Of g with two layers. Defaults to ``dict(type='BN')``,
            which the published code does not synchronise.
        init_cfg (dict or list[dict], optional): None is PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_layers: int = 1,
        power: float = 2,
        clamp: float = 0,
        pos_ratio: Optional[float] = 0.7,
        norm_cfg: Optional[dict] = None,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(pos_ratio, init_cfg)
        check_counts(in_channels=in_channels)
        check_above_zero(power=power)
        check_below_one(clamp=clamp)
        self.power = power
        self.clamp = clamp
        if num_layers == 0:
            self.value_transform = nn.Identity()
        elif num_layers == 1:
            self.value_transform = nn.Conv2d(in_channels, in_channels, 1)
        elif num_layers == 2:
            self.value_transform = ProjectionMLP(
                in_channels, in_channels, in_channels, norm_cfg=norm_cfg
            )
        else:
            raise InputError(f'num_layers must be 0, 1 or 2, got {num_layers!r}')

    def propagate(self, z: Tensor) -> Tensor:
        """Propagate each location's value to similar locations.

        Args:
            z (Tensor): N×C×H×W, projections.

        Returns:
            Tensor: N×C×H×W, not normalised.
        """
        value, grid = _grid(self.value_transform(z)), _grid(z)  # NxCxS
        similarity = torch.bmm(grid.transpose(1, 2), grid).clamp(min=self.clamp)  # NxSxS
        if self.power < 1:
            similarity = similarity + 1e-6  # whose power has a finite derivative
        return torch.bmm(value, similarity.pow(self.power)).view_as(z)

    def compare(self, z: Tensor, target: Tensor, positive: Tensor) -> Tensor:
        """Return the loss, see :class:`PixelHead`."""
        return pixel_consistency(_grid(self.propagate(z)), target, positive)


@MODELS.register_module()
class InstanceConsistencyHead(BaseModule):
    """Compare images, not only locations (the optional instance branch of PixPro).

    The predictor works on the map, before the average pool (so does the
    published code). Section 3.4 of https://arxiv.org/abs/2011.10043.

    Args:
        predictor (dict): :class:`mmdense.models.necks.ProjectionMLP`.
        init_cfg (dict or list[dict], optional): As everywhere.
    """

    def __init__(self, predictor: dict, init_cfg: Optional[Union[dict, list]] = None) -> None:
        super().__init__(init_cfg)
        self.predictor = MODELS.build(predictor)

    def loss(self, z: Tensor, target: Tensor) -> Tensor:
        """Return −2·cosine, one direction.

        Args:
            z (Tensor): N×C×H×W, the student's projections.
            target (Tensor): N×C×H'×W', the teacher's of the other view.

        Returns:
            Tensor: A scalar in [−2, 2].
        """
        pooled = (x.float().mean((2, 3)) for x in (self.predictor(z), target))
        query, key = (normalize(x, dim=1) for x in pooled)
        return -2 * (query * key).sum(1).mean()


def _grid(maps: Tensor) -> Tensor:
    """Flatten N×C×H×W to N×C×S, and normalise each location."""
    return unit_vectors(maps.flatten(2))
