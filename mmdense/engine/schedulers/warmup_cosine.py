# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math
from typing import List

from mmengine.optim import _ParamScheduler

from mmdense.registry import PARAM_SCHEDULERS
from mmdense.utils.checks import check_number


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Warm up the learning rate linearly, then lower it along a cosine.

    The schedule of PixPro (https://arxiv.org/abs/2011.10043) and SlotCon
    (https://arxiv.org/abs/2205.15288).

    At step t of T, with a warm-up of W steps::

        t ≤ W:  lr · (start_factor + (1 − start_factor) · t / W)
        t > W:  eta_min + (lr − eta_min) · (1 + cos(π · (t − W) / (T − W))) / 2

    MMEngine's LinearLR followed by its CosineAnnealingLR is not that: the first
    is at lr one step early, and the second starts from what the first left.

    A function of t alone: it replaces what other schedulers made of the
    learning rate. A run no longer than the warm-up only warms up.

    Args:
        optimizer (Optimizer or BaseOptimWrapper): Whose learning rates to set.
        end (int): T, in epochs (in iterations with ``by_epoch=False``), counted
            from ``begin`` = 0. In a config the run's length by default.
        warmup (float): W in the same unit, from 0. Defaults to 5.
        start_factor (float): Of lr at t = 0, in [0, 1]. Defaults to 0.01.
        eta_min (float): Where the cosine ends, from 0. It is not scaled with
            lr. Defaults to 1e-6.
        reach_early (bool): Whether the warm-up reaches lr one step before its end, at t = W − 1,
            so that two steps have it, as in SwAV's code. Defaults to False.
        begin (int): Step at which t is 0. Defaults to 0.
        last_step (int): t of the step before, when resuming without a state.
            Defaults to -1.
        by_epoch (bool): Defaults to True. The papers' is a step per iteration:
            ``convert_to_iter_based=True`` next to lengths in epochs.
        verbose (bool): Whether to print each value. Defaults to False.

    Raises:
        InputError: If warmup, start_factor or eta_min is out of its range.
    """

    def __init__(
        self,
        optimizer,
        end: int,
        warmup: float = 5,
        start_factor: float = 0.01,
        eta_min: float = 1e-6,
        reach_early: bool = False,
        begin: int = 0,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        _check('warmup', warmup)
        _check('start_factor', start_factor, 1)
        _check('eta_min', eta_min)
        self.warmup = warmup
        self.start_factor = start_factor
        self.eta_min = eta_min
        self.reach_early = reach_early
        super().__init__(optimizer, 'lr', begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args,
        end: int,
        epoch_length: int,
        warmup: float = 5,
        begin: int = 0,
        by_epoch: bool = True,
        **kwargs,
    ) -> 'WarmupCosineLR':
        """Build the schedule with a step per iteration: MMEngine calls this for a config
        with ``convert_to_iter_based=True``.

        Args:
            epoch_length (int): Iterations of an epoch.
            end, warmup, begin: In epochs.

        Raises:
            InputError: As the constructor.
        """
        _check('warmup', warmup)
        end, warmup, begin = (int(epochs * epoch_length) for epochs in (end, warmup, begin))
        return cls(*args, end=end, warmup=warmup, begin=begin, by_epoch=False, **kwargs)

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue where the run stopped, along the curve of this run.

        The length and the warm-up are those of the config, not of the checkpoint.
        """
        own = {name: getattr(self, name) for name in ('begin', 'end', 'warmup')}
        super().load_state_dict({**state_dict, **own})
        # a run that was over took no step at its end
        self.last_step = max(self._global_step - self.begin, 0)
        # the optimizer, loaded before, has the other curve's
        for group, lr in zip(self.optimizer.param_groups, self._get_value()):
            group['lr'] = lr

    def _get_value(self) -> List[float]:
        """Return the learning rate of each group at step ``last_step``."""
        t = self.last_step
        if t < self.warmup:
            rise = t / max(self.warmup - self.reach_early, 1)
            factor = self.start_factor + (1 - self.start_factor) * rise
            return [lr * factor for lr in self.base_values]
        done = (t - self.warmup) / (self.end - self.begin - self.warmup)
        factor = (1 + math.cos(math.pi * done)) / 2
        return [self.eta_min + (lr - self.eta_min) * factor for lr in self.base_values]


def _check(name: str, value: float, highest: float = math.inf) -> None:
    """Check that a value is a finite number from 0 to ``highest``."""
    limit = '' if highest == math.inf else f' to {highest}'
    check_number(
        f'WarmupCosineLR: {name}', value, lambda x: 0 <= x <= highest, f'a number from 0{limit}'
    )
