# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor

from mmdense.registry import MODELS

from .pixpro_head import PixContrastHead


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
