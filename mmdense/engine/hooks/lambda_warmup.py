# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.utils import get_ori_model

from mmdense.registry import HOOKS
from mmdense.utils.checks import check_whole
from mmdense.utils.errors import InputError

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

    def before_train_iter(self, runner, batch_idx: int, data_batch: Optional[dict] = None) -> None:
        """Set λ for this iteration."""
        steps = runner.iter // accumulated(runner)
        self.model.loss_lambda = self.loss_lambda if steps >= self.start_iters else 0.0

    def after_train(self, runner) -> None:
        """Set the λ of the config again."""
        self.model.loss_lambda = self.loss_lambda
