# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from functools import lru_cache
from typing import Callable, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmdense.registry import OPTIMIZERS
from mmdense.utils.checks import check_number
from mmdense.utils.errors import InputError


class Options(NamedTuple):
    """Hold the settings of a parameter group. (PyTorch adds keys of its own to the defaults.)"""

    lr: float
    momentum: float
    weight_decay: float
    trust_coefficient: float
    eps: float
    maximize: bool
    lr_in_buffer: bool
    adapt_all: bool


@OPTIMIZERS.register_module()
class LARS(Optimizer):
    """Run SGD with momentum and an adapted step size for each weight tensor.

    LARS (https://arxiv.org/abs/1708.03888), as PixPro (https://arxiv.org/abs/2011.10043), SlotCon
    (https://arxiv.org/abs/2205.15288), BYOL and MoCo v3 use it::

        g = grad + weight_decay · w
        g = g · trust_coefficient · ‖w‖ / (‖g‖ + eps)      (as it is, if a norm is 0)
        buffer = momentum · buffer + g
        w = w − lr · buffer

    Parameters of one dimension (biases, norm layers) or none get neither the
    decay nor the factor, whatever the config says: no ``paramwise_cfg`` is
    needed. Other code differs, and two arguments follow it:

    - ``lr_in_buffer`` (SimCLR, https://arxiv.org/abs/2002.05709): ``buffer = momentum · buffer +
      lr · g; w = w − buffer``. With a constant learning rate it is the same.
    - ``adapt_all`` (SwAV, https://arxiv.org/abs/2006.09882: apex's LARC without clipping): every
      parameter gets decay and factor, and the factor is trust_coefficient · ‖w‖ / (‖grad‖ +
      weight_decay · ‖w‖ + eps). Where a norm is 0 the bare gradient goes into the buffer.

    mmpretrain's optimizer of the same name has the factor of the second and the buffer of the
    first.

    The step asks the device for no value, so that the host never waits for it.
    Gradients are only read. With weight decay a step takes temporary memory of
    the size of the gradients of more than one dimension; on a CPU of the largest of them.
    On a CPU, after the norms, a tensor's step is one operation of PyTorch (from 2.4).

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
        lr_in_buffer (bool): Whether the buffer holds steps of their own learning rate. Defaults to
            False.
        adapt_all (bool): Whether to adapt all parameters, as apex's LARC. Defaults to False.

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
        lr_in_buffer: bool = False,
        adapt_all: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            maximize=maximize,
            lr_in_buffer=lr_in_buffer,
            adapt_all=adapt_all,
        )
        super().__init__(params, defaults)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of checkpoints from before these arguments
            group.setdefault('lr_in_buffer', False)
            group.setdefault('adapt_all', False)

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
            options = Options(*(group[name] for name in Options._fields))
            for p in group['params']:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise InputError('LARS: sparse gradients are not supported')
                adapt = p.ndim > 1 or group['adapt_all']
                alike[(p.device, p.dtype, adapt, options)].append(p)
        for (device, _, adapt, options), params in alike.items():
            # On a CPU each large tensor by itself: all operations on it while it is in the caches,
            # and the decayed gradient in memory that the tensor before left.
            by_itself = adapt and device.type == 'cpu'
            for part in [[p] for p in params] if by_itself else [params]:
                if by_itself and options.momentum and self._fuses(*part):
                    self._fused_step(*part, options)
                else:
                    self._step(part, adapt, options)
        return loss

    def _fuses(self, p: Tensor) -> bool:
        """Return whether PyTorch's fused SGD can make the step of a tensor on a CPU."""
        formats = torch.contiguous_format, torch.channels_last
        strides = {x.stride() for x in (p, p.grad, self._buffer(p))}
        return (
            p.dtype == torch.float32
            and len(strides) == 1  # the operation walks through memory
            and any(p.is_contiguous(memory_format=format) for format in formats)
            and _has_fused_sgd()
        )

    def _step(self, params: List[Tensor], adapt: bool, options: Options) -> None:
        """Make the step of parameters of one device and dtype; ``adapt``: with decay and factor."""
        lr, momentum, weight_decay, trust_coefficient, eps, maximize, lr_in_buffer, adapt_all = (
            options
        )
        grads = [p.grad for p in params]
        if maximize:
            grads = torch._foreach_neg(grads)
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, momentum)
        inner, outer = (lr, 1.0) if lr_in_buffer else (1.0, lr)
        if adapt and adapt_all:
            norm = torch.stack(torch._foreach_norm(params))
            grad_norm = torch.stack(torch._foreach_norm(grads))
            zero = (norm == 0) | (grad_norm == 0)
            factor = trust_coefficient * norm / (grad_norm + weight_decay * norm + eps)
            factor = inner * factor.masked_fill(zero, 1)
            torch._foreach_addcmul_(buffers, grads, factor.unbind())
            if weight_decay:
                decay = (weight_decay * factor).masked_fill(zero, 0)
                torch._foreach_addcmul_(buffers, params, decay.unbind())
        elif adapt:
            if weight_decay:
                grads = torch._foreach_add(grads, params, alpha=weight_decay)
            norm = torch.stack(torch._foreach_norm(params))
            grad_norm = torch.stack(torch._foreach_norm(grads))
            factor = trust_coefficient * norm / (grad_norm + eps)
            factor.masked_fill_((norm == 0) | (grad_norm == 0), 1)
            factor = inner * factor if lr_in_buffer else factor
            torch._foreach_addcmul_(buffers, grads, factor.unbind())
        else:
            torch._foreach_add_(buffers, grads, alpha=inner)
        torch._foreach_add_(params, buffers, alpha=-outer)

    def _fused_step(self, p: Tensor, options: Options) -> None:
        """Make the same step of one tensor of a CPU, which reads and writes all memory once after
        the norms."""
        lr, momentum, weight_decay, trust_coefficient, eps, maximize, lr_in_buffer, adapt_all = (
            options
        )
        grad = p.grad.neg() if maximize else p.grad
        if weight_decay and not adapt_all:
            grad, weight_decay = torch.add(grad, p, alpha=weight_decay), 0.0
        norm, grad_norm = (float(torch.linalg.vector_norm(x)) for x in (p, grad))
        if norm == 0 or grad_norm == 0:
            factor, weight_decay = 1.0, 0.0
        else:
            factor = trust_coefficient * norm / (grad_norm + weight_decay * norm + eps)
        inner, outer = (lr, 1.0) if lr_in_buffer else (1.0, lr)
        # buffer = momentum · buffer + (1 − dampening) · (grad + weight_decay · w)
        torch._fused_sgd_(
            [p],
            [grad],
            [self._buffer(p)],
            weight_decay=weight_decay,
            momentum=momentum,
            lr=outer,
            dampening=1.0 - inner * factor,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(p)
        return state['momentum_buffer']


@lru_cache(maxsize=None)
def _has_fused_sgd() -> bool:
    """Return whether this PyTorch has SGD as one operation on a CPU."""
    tensors = [[torch.zeros(1)] for _ in range(3)]
    settings = dict(nesterov=False, maximize=False, is_first_step=False)
    numbers = dict(weight_decay=0.0, momentum=0.9, lr=0.1, dampening=0.0)
    try:
        torch._fused_sgd_(*tensors, **numbers, **settings)
    except (AttributeError, RuntimeError):  # NotImplementedError is one of the second
        return False
    return True


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
    for name in ('maximize', 'lr_in_buffer', 'adapt_all'):
        if not isinstance(options[name], bool):
            raise InputError(f'LARS: {name} must be True or False, got {options[name]!r}')
