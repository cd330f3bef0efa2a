# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmdense.registry import MODELS

from .local_contrast import LocalContrast
from .simsiam import SimSiam


@MODELS.register_module()
class LCLossSimSiam(LocalContrast, SimSiam):
    """Predict images, and contrast the locations of their views, on SimSiam (LC-loss).

    There is no momentum encoder: the target of the local loss is the other view's projection of the
    same network, without gradient. This combination is ours.

    Args:
        kwargs: Arguments of :class:`SimSiam` and :class:`LocalContrast`.
    """
