# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmengine.optim import LinearLR

from mmdense.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class LinearWarmupLR(LinearLR):
    """Warm up the learning rate linearly, next to a schedule that multiplies it.

    The warm-up of mmcv 1, in which the recipe of CCOP (https://arxiv.org/abs/2111.13651) was
    written: at iteration i of W the factor is ``start_factor + (1 - start_factor) · i / W``.
    MMEngine's LinearLR is at 1 an iteration before.

    Args:
        args, kwargs: Arguments of MMEngine's ``LinearLR``. In a config lengths are in epochs, with
            ``convert_to_iter_based=True``.
    """

    @classmethod
    def build_iter_from_epoch(cls, *args, begin: int = 0, end: int, epoch_length: int, **kwargs):
        """Build the schedule with a step per iteration, of lengths in epochs: MMEngine calls this
        for a config with ``convert_to_iter_based=True``."""
        kwargs.pop('by_epoch', None)
        first, last = int(begin * epoch_length), int(end * epoch_length) + 1
        return cls(*args, begin=first, end=last, by_epoch=False, **kwargs)
