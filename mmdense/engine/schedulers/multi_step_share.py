# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Sequence

from mmengine.optim import MultiStepLR

from mmdense.registry import PARAM_SCHEDULERS
from mmdense.utils.checks import check_fractions


@PARAM_SCHEDULERS.register_module()
class MultiStepShareLR(MultiStepLR):
    """Lower the learning rate in steps, at shares of the run.

    MMEngine's ``MultiStepLR``, whose milestones follow the length of the run: MoCo v1
    (https://arxiv.org/abs/1911.05722) has its steps at epochs 120 and 160 of 200.

    Args:
        optimizer (Optimizer or BaseOptimWrapper): Whose learning rates to set.
        shares (Sequence[float]): Shares of the run after which the learning rate is multiplied by
            ``gamma``, each in [0, 1]. A milestone is rounded to a step; those of one step are one,
            and those at an end of the run are left out.
        end (int): Length of the run. In a config it is set by default.
        begin (int): Step at which the run begins. Defaults to 0.
        kwargs: Arguments of ``MultiStepLR``, such as ``gamma`` and ``by_epoch``.

    Raises:
        InputError: A share is out of its range.
    """

    def __init__(
        self, optimizer, shares: Sequence[float], end: int, begin: int = 0, **kwargs
    ) -> None:
        for share in shares:
            check_fractions(shares=share)
        steps = {round(share * (end - begin)) for share in shares} - {0, end - begin}
        super().__init__(optimizer, milestones=sorted(steps), begin=begin, end=end, **kwargs)

    @classmethod
    def build_iter_from_epoch(cls, *args, end: int, epoch_length: int, begin: int = 0, **kwargs):
        """Build the schedule with a step per iteration, of lengths in epochs: MMEngine calls this
        for a config with ``convert_to_iter_based=True``."""
        kwargs['by_epoch'] = False
        first, last = int(begin * epoch_length), int(end * epoch_length)
        return cls(*args, begin=first, end=last, **kwargs)
