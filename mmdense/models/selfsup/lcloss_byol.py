# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmdense.registry import MODELS

from .byol import BYOL
from .local_contrast import LocalContrast


@MODELS.register_module()
class LCLoss(LocalContrast, BYOL):
    """Predict images, and contrast the locations of their views, on BYOL (LC-loss).

    `Self-Supervised Learning with Local Contrastive Loss for Detection and Semantic Segmentation
    <https://arxiv.org/abs/2207.04398>`_ (WACV 2023). The authors have published no code: the idea
    is the paper's, a local loss between places of two views that the crops tell, added to BYOL.
    **Ours** are the layer, the networks, the match, the negatives, the temperature, the weight and
    the recipe. It is no reproduction.

    Args:
        kwargs: Arguments of :class:`BYOL` and :class:`LocalContrast`.
    """
