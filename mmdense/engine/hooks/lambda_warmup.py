# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.utils import get_ori_model

from mmdense.registry import HOOKS
from mmdense.utils.checks import check_whole
from mmdense.utils.errors import InputError

from ..events import log_event
from .momentum_encoder import accumulated


@HOOKS.register_module()
class LambdaWarmupHook(Hook):
    """Keep DenseCL's λ at 0 for the first iterations.

    Until the backbone's features say something, matched locations are random; the
    authors' code has this as an option, and the released recipes leave it off
    (https://arxiv.org/abs/2011.09157, section 3.3).

    Args:
        start_iters (int): Steps of the optimizer with λ = 0: iterations, but
            for gradient accumulation. Defaults to 1000.
    """

    def __init__(self, start_iters: int = 1000) -> None:
        check_whole(0, start_iters=start_iters)
        self.start_iters = start_iters

    def before_train(self, runner) -> None:
        """Remember the λ of the config."""
        model = get_ori_model(runner.model)
        if not hasattr(model, 'loss_lambda'):
            raise InputError(f'LambdaWarmupHook: {type(model).__name__} has no loss_lambda')
        self.model, self.loss_lambda = model, model.loss_lambda
        if self._steps(runner) < self.start_iters:
            log_event(
                runner,
                'dense_loss_waits',
                f'The dense loss starts at iteration {self._start(runner)}: its weight λ is 0 '
                f'before, and {self.loss_lambda:g} from there on. The loss changes there by a '
                'step; the dense part starts near chance level and falls from there.',
                iteration=self._start(runner),
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Optional[dict] = None) -> None:
        """Set λ for this iteration."""
        starts = self._steps(runner) >= self.start_iters
        if starts and self.model.loss_lambda == 0 and runner.iter + 1 == self._start(runner):
            log_event(
                runner,
                'dense_loss_starts',
                f'The dense loss starts (iteration {runner.iter + 1}): the loss changes by a step.',
                iteration=runner.iter + 1,
            )
        self.model.loss_lambda = self.loss_lambda if starts else 0.0

    @staticmethod
    def _steps(runner) -> int:
        return runner.iter // accumulated(runner)

    def _start(self, runner) -> int:
        """Return the first iteration with the dense loss, counted from 1 as in the log."""
        return self.start_iters * accumulated(runner) + 1

    def after_train(self, runner) -> None:
        """Set the λ of the config again."""
        self.model.loss_lambda = self.loss_lambda
