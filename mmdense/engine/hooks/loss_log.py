# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from mmdense.registry import HOOKS


@HOOKS.register_module()
class LossLogHook(Hook):
    """Read the losses when a line is logged, and not in every iteration.

    To read a loss is to wait for the device, and MMEngine reads each of them
    after each step: the device then idles until the next step reaches it. This
    hook keeps them on the device, and hands all of them to the log at once
    whenever a line is due, an epoch or the run ends, or a checkpoint is saved.
    The log is the same.

    Hooks that look at every iteration's losses themselves (such as mmdet's
    CheckInvalidLossHook) find none.
    """

    priority = 'HIGHEST'  # before MMEngine's RuntimeInfoHook reads them

    def __init__(self) -> None:
        self.pending: List[Dict[str, Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Find out when lines are due."""
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self.interval = min((hook.interval for hook in loggers), default=50)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Optional[dict] = None,
        outputs: Optional[Dict[str, Tensor]] = None,
    ) -> None:
        """Take the losses out of ``outputs``; the log gets them when a line is due."""
        names = [name for name, value in (outputs or {}).items() if isinstance(value, Tensor)]
        if names:
            self.pending.append({name: outputs.pop(name).detach() for name in names})
        if (
            self.every_n_inner_iters(batch_idx, self.interval)
            or self.every_n_train_iters(runner, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx)
            or self.is_last_train_iter(runner)
        ):
            self._flush(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the log to the checkpoint."""
        if self.pending:
            self._flush(runner)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def _flush(self, runner: Runner) -> None:
        named = [item for losses in self.pending for item in losses.items()]
        self.pending = []
        if not named:
            return
        values = torch.stack([value.float().mean() for _, value in named])
        for (name, _), value in zip(named, values.tolist()):  # waits for the device, once
            runner.message_hub.update_scalar(f'train/{name}', value)
