# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmdense.registry import MODELS

from .base import Views
from .byol import BYOL
from .local_contrast import LocalContrast
from .moco import MoCo
from .simsiam import SimSiam


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


@MODELS.register_module()
class LCLossMoCo(LocalContrast, MoCo):
    """Contrast images with a queue, and the locations of their views, on MoCo (LC-loss).

    The local loss has one direction, from the query's view to the key's, as MoCo's own. The paper
    names BYOL above all; this combination is ours.

    Args:
        kwargs: Arguments of :class:`MoCo` and :class:`LocalContrast`.
    """

    views = Views(trained=(1,), boxes=True)


@MODELS.register_module()
class LCLossSimSiam(LocalContrast, SimSiam):
    """Predict images, and contrast the locations of their views, on SimSiam (LC-loss).

    There is no momentum encoder: the target of the local loss is the other view's projection of the
    same network, without gradient. This combination is ours.

    Args:
        kwargs: Arguments of :class:`SimSiam` and :class:`LocalContrast`.
    """
