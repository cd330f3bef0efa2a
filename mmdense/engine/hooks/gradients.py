# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Change the gradients between backward and the optimizer's step, whatever the optimizer."""

from typing import List, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor

from mmdense.registry import HOOKS
from mmdense.utils.checks import check_above_zero, check_whole
from mmdense.utils.errors import InputError

from ..step_guard import StepGuard


class _GradientHook(Hook):
    """Call :meth:`change_gradients` before each step of the optimizer."""

    def before_train(self, runner: Runner) -> None:
        """Attach the hook to the optimizer."""
        optimizer = runner.optim_wrapper.optimizer
        self.guard = StepGuard(optimizer, lambda _: self.change_gradients(runner))

    def change_gradients(self, runner: Runner) -> None:
        """Change the gradients of the parameters, which are not scaled."""
        raise NotImplementedError

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer as it was."""
        self.guard.remove()


@HOOKS.register_module()
class ClipEachGradientHook(_GradientHook):
    """Clip the gradient of each parameter by its own norm, as DINO does.

    ``clip_grad`` of MMEngine's ``OptimWrapper`` clips by the norm of all gradients together.

    Args:
        max_norm (float): Largest norm of a gradient, above 0. Defaults to 3.0.
    """

    def __init__(self, max_norm: float = 3.0) -> None:
        check_above_zero(max_norm=max_norm)
        self.max_norm = max_norm

    def change_gradients(self, runner: Runner) -> None:
        """Clip all gradients."""
        groups = runner.optim_wrapper.optimizer.param_groups
        parameters = (p for group in groups for p in group['params'])
        clip_each([p.grad for p in parameters if p.grad is not None], self.max_norm)


@torch.no_grad()
def clip_each(gradients: List[Tensor], max_norm: float) -> None:
    """Scale each gradient with a larger norm down to ``max_norm``, in place."""
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp_(max=1)
    for gradient, factor in zip(gradients, factors.unbind()):
        gradient.mul_(factor)


@HOOKS.register_module()
class FreezeLayersHook(_GradientHook):
    """Keep layers as they are initialized in the first epochs.

    Their gradients are removed before the optimizer's step, so neither weight decay nor momentum
    touches them. Several processes exchange these gradients as any others.

    Args:
        layers (Sequence[str]): Names of modules; each parameter below one of that name is kept.
        epochs (int): Number of epochs, from 0. Defaults to 1.
    """

    def __init__(self, layers: Sequence[str], epochs: int = 1) -> None:
        check_whole(0, epochs=epochs)
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.epochs = epochs

    def before_train(self, runner: Runner) -> None:
        """Find the parameters, and say how long they stay."""
        super().before_train(runner)
        parameters = get_ori_model(runner.model).named_parameters()
        trained = [(name, p) for name, p in parameters if p.requires_grad]
        names = {layer: [n for n, _ in trained if layer in n.split('.')] for layer in self.layers}
        missing = [layer for layer, found in names.items() if not found]
        if missing:
            raise InputError(
                f'FreezeLayersHook: the model has no trained layer named {missing[0]!r}'
            )
        kept = {name for found in names.values() for name in found}
        self.parameters = [p for name, p in trained if name in kept]
        if runner.epoch < self.epochs:
            print_log(
                f'{", ".join(self.layers)} stays as it is until epoch {self.epochs + 1}',
                logger='current',
            )

    def change_gradients(self, runner: Runner) -> None:
        """Remove the gradients of the layers in the first epochs."""
        if runner.epoch < self.epochs:
            for parameter in self.parameters:
                parameter.grad = None
