# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import cos, pi

import torch
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmdense.utils.checks import check_below_one, check_counts, check_number
from mmdense.utils.errors import InputError


class MomentumEncoder(ExponentialMovingAverage):
    r"""Average the parameters of the online network over its steps.

    The interface and state dict are those of MMEngine's averaged models
    (``module.*``, ``steps``), with two differences. The average covers the
    parameters ONLY: the BatchNorm buffers are its own, gathered in its own
    forward passes in train mode, as in MoCo, PixPro and SlotCon (MMEngine
    copies the online network's over them). And all parameters are updated in
    one fused call.

    .. math:: \theta_k \leftarrow (1 - \alpha) \theta_k + \alpha \theta_q

    ``momentum`` is :math:`\alpha`, one minus what the papers call momentum, as
    everywhere in OpenMMLab. With ``end_momentum`` it follows a cosine from
    one to the other over the run (BYOL, https://arxiv.org/abs/2006.07733,
    appendix B; PixPro, SlotCon), counted by ``steps``, a buffer, so that it
    survives a resume:

    .. math:: \alpha(k) = \alpha_{end} + (\alpha - \alpha_{end})
              (\cos(\pi k / K) + 1) / 2

    While gradients are accumulated over several iterations, the average is
    updated in the first of them, once for each step of the optimizer:
    :class:`mmdense.engine.MomentumEncoderHook` sets ``enabled``.

    Args:
        model (nn.Module): The online network, copied.
        momentum (float): :math:`\alpha` (at the first step), in (0, 1).
            Defaults to 0.001.
        end_momentum (float, optional): :math:`\alpha_{end}`, in [0, 1).
            None keeps ``momentum`` constant.
        total_steps (int, optional): K, the updates of the complete run. None
            takes the ``max_iters`` that MMEngine's runner publishes.

    Attributes:
        enabled (bool): Whether :meth:`update` updates the average.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 0.001, end_momentum=None, total_steps=None
    ) -> None:
        meaning = 'in (0, 1) (it is one minus the value in the papers: 0.001 for 0.999)'
        check_number('momentum', momentum, lambda x: 0 < x < 1, meaning)
        if end_momentum is not None:
            check_below_one(end_momentum=end_momentum)
        if total_steps is not None:
            check_counts(total_steps=total_steps)
        super().__init__(model, momentum=momentum)
        self.end_momentum = end_momentum
        self.total_steps = total_steps
        self.enabled = True
        self._steps = None

    def current_momentum(self) -> float:
        r"""Return :math:`\alpha` of the next update."""
        if self.end_momentum is None:
            return self.momentum
        weight = (cos(pi * self.progress()) + 1) / 2
        return self.end_momentum + (self.momentum - self.end_momentum) * weight

    def progress(self) -> float:
        """Return the number of updates so far as a share of the run's K, at most 1.

        Raises:
            InputError: When K is not known.
        """
        total = self.total_steps or MessageHub.get_current_instance().get_info('max_iters')
        if not total:
            raise InputError(
                'the momentum schedule needs the number of steps of the run: set total_steps, or '
                "train by MMEngine's runner, which knows it"
            )
        return min(self.num_updates() / total, 1)

    def update(self, model: nn.Module) -> None:
        """Call :meth:`update_parameters`, unless the optimizer has not stepped since."""
        if self.enabled or self.num_updates() == 0:
            self.update_parameters(model)

    def initialize(self, model: nn.Module) -> None:
        """Copy ``model``, unless the average was updated before.

        The weights of the online network are initialized after ``__init__`` copied them.
        """
        if self.num_updates() == 0:
            self._approach(model, 1.0)

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards ``model``; the first call copies it.

        Args:
            model (nn.Module): The online network, structured as the one given
                to ``__init__``.
        """
        self._approach(model, 1.0 if self.num_updates() == 0 else self.current_momentum())
        self.steps += 1
        self._steps += 1

    @torch.no_grad()
    def _approach(self, model: nn.Module, alpha: float) -> None:
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), alpha)

    def num_updates(self) -> int:
        """Return ``steps`` without waiting for the device at every call."""
        if self._steps is None:
            self._steps = int(self.steps)
        return self._steps

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = None
