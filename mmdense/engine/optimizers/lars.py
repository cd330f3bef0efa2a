# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from typing import Callable, Iterable, List, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdense.registry import OPTIMIZERS
from mmdense.utils.checks import check_number
from mmdense.utils.errors import InputError

# Not self.defaults: PyTorch adds keys of its own to that one.
OPTIONS = ('lr', 'momentum', 'weight_decay', 'trust_coefficient', 'eps', 'maximize')


@OPTIMIZERS.register_module()
class LARS(Optimizer):
    """Run SGD with momentum and an adapted step size for each weight tensor.

    LARS (https://arxiv.org/abs/1708.03888), as PixPro (https://arxiv.org/abs/2011.10043) and
    SlotCon (https://arxiv.org/abs/2205.15288) use it::

        g = grad + weight_decay · w
        g = g · trust_coefficient · ‖w‖ / (‖g‖ + eps)      (as it is, if a norm is 0)
        buffer = momentum · buffer + g
        w = w − lr · buffer

    Parameters of one dimension (biases, norm layers) or none get neither the
    decay nor the factor, whatever the config says: no ``paramwise_cfg`` is
    needed. mmpretrain's optimizer of the same name uses the norm of the bare
    gradient, keeps the learning rate in the buffer, and adapts every parameter.

    The step asks the device for no value, so that the host never waits for it.
    Gradients are only read. With weight decay a step takes temporary memory of
    the size of the gradients of more than one dimension; on a CPU of the largest of them.

    Args:
        params (Iterable): Parameters, floating point and of any shape, or
            dicts of parameter groups.
        lr (float): The learning rate, from 0. The papers' is 1.0 for a total
            batch of 256, scaled linearly.
        momentum (float): From 0 to below 1. Defaults to 0.9.
        weight_decay (float): From 0. Defaults to 0; the papers' is 1e-5.
        trust_coefficient (float): How far a step of lr 1 goes, as a fraction
            of the tensor's norm; above 0. Defaults to 1e-3.
        eps (float): Added to the norm of the gradient, from 0. Defaults to 1e-8.
        maximize (bool): Go up the gradient instead of down. Defaults to False.

    Raises:
        InputError: If an argument is out of its range or not a number.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            maximize=maximize,
        )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict) -> None:
        """Add parameters; keys that the dict lacks have the optimizer's values.

        Raises:
            InputError: If a value is out of its range or not a number.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None) -> Optional[Tensor]:
        """Make one step for every parameter that has a gradient.

        Args:
            closure (Callable, optional): Computes the loss and the gradients
                again and returns the loss.

        Returns:
            Tensor, optional: What ``closure`` returned.

        Raises:
            InputError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # Parameters that are treated alike go together, also across groups: a paramwise_cfg makes
        # a group of each parameter.
        alike = defaultdict(list)
        for group in self.param_groups:
            options = tuple(group[name] for name in OPTIONS)
            for p in group['params']:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise InputError('LARS: sparse gradients are not supported')
                alike[(p.device, p.dtype, p.ndim > 1, options)].append(p)
        for (device, _, adapt, options), params in alike.items():
            # On a CPU each large tensor by itself: all operations on it while it is in the caches,
            # and the decayed gradient in memory that the tensor before left.
            by_itself = adapt and device.type == 'cpu'
            for part in [[p] for p in params] if by_itself else [params]:
                self._step(part, adapt, **dict(zip(OPTIONS, options)))
        return loss

    def _step(
        self,
        params: List[Tensor],
        adapt: bool,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        eps: float,
        maximize: bool,
    ) -> None:
        """Make the step of parameters of one device and dtype; ``adapt``: with decay and factor."""
        grads = [p.grad for p in params]
        if maximize:
            grads = torch._foreach_neg(grads)
        buffers = [self._buffer(p) for p in params]
        if adapt:
            if weight_decay:
                grads = torch._foreach_add(grads, params, alpha=weight_decay)
            norm = torch.stack(torch._foreach_norm(params))
            grad_norm = torch.stack(torch._foreach_norm(grads))
            factor = trust_coefficient * norm / (grad_norm + eps)
            factor.masked_fill_((norm == 0) | (grad_norm == 0), 1)
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_addcmul_(buffers, grads, factor.unbind())
        else:
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads)
        torch._foreach_add_(params, buffers, alpha=-lr)

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(p)
        return state['momentum_buffer']


def _check(options: dict) -> None:
    """Check the values of a parameter group."""
    ranges = dict(
        lr=('a number from 0', lambda x: x >= 0),
        momentum=('a number from 0 to below 1', lambda x: 0 <= x < 1),
        weight_decay=('a number from 0', lambda x: x >= 0),
        trust_coefficient=('a number above 0', lambda x: x > 0),
        eps=('a number from 0', lambda x: x >= 0),
    )
    for name, (meaning, fits) in ranges.items():
        check_number(f'LARS: {name}', options[name], fits, meaning)
    if not isinstance(options['maximize'], bool):
        raise InputError(f'LARS: maximize must be True or False, got {options["maximize"]!r}')
