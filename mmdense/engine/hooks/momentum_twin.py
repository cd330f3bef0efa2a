# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil
from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from mmdense.models.layers import MomentumEncoder
from mmdense.registry import HOOKS


@HOOKS.register_module()
class MomentumTwinHook(Hook):
    """Moves momentum twins once for each step of the optimizer.

    With ``optim_wrapper.accumulative_counts=k`` it steps in every k-th
    iteration; without this hook a twin would move in every one, k times as
    fast, and pass through its schedule k times too slowly.
    """

    def before_train(self, runner: Runner) -> None:
        """Finds the twins, and tells them how many steps the run has."""
        model = get_ori_model(runner.model)
        self.twins = [m for m in model.modules() if isinstance(m, MomentumEncoder)]
        self.every = accumulated(runner)
        if self.every == 1:
            self.twins = []
        for twin in self.twins:
            if twin.total_steps is None:
                twin.total_steps = ceil(runner.max_iters / self.every)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None
    ) -> None:
        """Lets them move in the first iteration after a step."""
        for twin in self.twins:
            twin.moving = runner.optim_wrapper.inner_count % self.every == 0

    def after_train(self, runner: Runner) -> None:
        """Leaves the twins as they were."""
        for twin in self.twins:
            twin.moving = True


def accumulated(runner: Runner) -> int:
    """Iterations whose gradients make one step of the optimizer."""
    # MMEngine has no public name for it
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)
