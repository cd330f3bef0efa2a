# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmdense.registry import MODELS

from .base import Views
from .local_contrast import LocalContrast
from .moco import MoCo


@MODELS.register_module()
class LCLossMoCo(LocalContrast, MoCo):
    """Contrast images with a queue, and the locations of their views, on MoCo (LC-loss).

    The local loss has one direction, from the query's view to the key's, as MoCo's own. The paper
    names BYOL above all; this combination is ours.

    Args:
        kwargs: Arguments of :class:`MoCo` and :class:`LocalContrast`.
    """

    views = Views(trained=(1,), boxes=True)
