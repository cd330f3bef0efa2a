# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil
from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from mmdense.models.layers import MomentumEncoder
from mmdense.registry import HOOKS


@HOOKS.register_module(name=['MomentumEncoderHook', 'MomentumTwinHook'])  # the second: older runs
class MomentumEncoderHook(Hook):
    """Update momentum encoders once for each step of the optimizer.

    With ``optim_wrapper.accumulative_counts=k`` the optimizer steps in every k-th iteration.
    Without this hook a momentum encoder would be updated in every iteration: it would move k
    times as fast, and pass through its schedule k times too slowly.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the momentum encoders, and set the number of steps of the run."""
        model = get_ori_model(runner.model)
        self.encoders = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
        self.every = accumulated(runner)
        if self.every == 1:
            self.encoders = []
        for encoder in self.encoders:
            if encoder.total_steps is None:
                encoder.total_steps = ceil(runner.max_iters / self.every)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Enable the update in the first iteration after a step."""
        for encoder in self.encoders:
            encoder.enabled = runner.optim_wrapper.inner_count % self.every == 0

    def after_train(self, runner: Runner) -> None:
        """Enable the update again."""
        for encoder in self.encoders:
            encoder.enabled = True


def accumulated(runner: Runner) -> int:
    """Return the number of iterations whose gradients make one step of the optimizer."""
    # MMEngine has no public name for it
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)
