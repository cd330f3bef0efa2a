# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define algorithms with a momentum encoder."""

from typing import Dict, List, Tuple

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmdense.models.layers import MomentumEncoder

from .base import RunFacts, SelfSupervisor, Setting


class MomentumSelfSupervisor(SelfSupervisor, BaseSelfSupervisor):
    """Add a momentum encoder to an algorithm with backbone, neck and head.

    A subclass sets :attr:`encoder_k`, a :class:`~mmdense.models.layers.MomentumEncoder` of
    :meth:`online_network`, in its ``__init__``, and calls ``self.encoder_k.update()`` in
    ``loss()``, before the momentum encoder's forward pass.

    Args:
        kwargs: Arguments of :class:`SelfSupervisor`.
    """

    encoder_k: MomentumEncoder

    def online_network(self) -> nn.Module:
        """Return the network that the momentum encoder averages."""
        return nn.Sequential(self.backbone, self.neck)

    def init_weights(self) -> None:
        """Initialize the weights, and copy them to the momentum encoder.

        The momentum encoder is initialized here, not only at the first step: its backbone may
        be evaluated or shown before that.
        """
        super().init_weights()
        self.encoder_k.initialize(self.online_network())

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks of both encoders."""
        return [*self.online_network().children(), *self.encoder_k.module.children()]

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the length of the queues, where the recipe has queues."""
        if 'queue_len' not in facts.recipe.model:
            return []
        length, reason = choose_queue(facts)
        return [Setting('queue', f'{length:,}', reason, {'model.queue_len': length})]

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Add the momentum encoder's number of updates, which is in no published file: at 0 the
        momentum encoder would become a copy of the online network."""
        tensors.setdefault('encoder_k.steps', torch.tensor(1))
        return tensors

    def as_new_run(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return a checkpoint's tensors for the start of another run.

        The momentum encoder keeps its weights, and its schedule starts anew, as that of the
        learning rate does: at the end of the last run it stood still.

        Args:
            tensors (Dict[str, Tensor]): Named as here; queues also as in mmpretrain and
                OpenSelfSup.

        Returns:
            Dict[str, Tensor]: All of them, named as here.
        """
        tensors = super().as_new_run(tensors)
        for name, part in self.named_modules():
            if isinstance(part, MomentumEncoder) and f'{name}.steps' in tensors:
                # 1 where it was ever updated: at 0 it would become the online network's copy
                tensors[f'{name}.steps'] = tensors[f'{name}.steps'].clamp(max=1)
        return tensors


def choose_queue(facts: RunFacts) -> Tuple[int, str]:
    """Return the number of keys in a queue, a multiple of the batch, and the reason.

    A key is some steps old, and the momentum encoder has moved meanwhile. Where it has moved
    far, a query's own key differs from those of the queue by its age alone: the loss is low, and
    the features have few dimensions (docs/evidence.md has the figures).

    Args:
        facts (RunFacts): The run.
    """
    batch, steps = facts.batch, facts.steps
    usual = facts.recipe.model.queue_len
    age = usual // facts.recipe.auto_scale_lr.base_batch_size  # steps, of the recipe's oldest key
    limits = [
        (usual, "the recipe's"),
        (facts.images, 'at most the number of images, or keys of an image meet its own old ones'),
        (batch * steps / 20, f'no key older than a twentieth of the {steps:,} steps'),
        (batch * age, f'no key older than {age} steps, as in the recipe'),
    ]
    limit, reason = min(limits, key=lambda item: item[0])
    return max(power_of_two(limit) // batch, 1) * batch, reason


def power_of_two(value: float) -> int:
    """Return the largest power of two that is not above ``value``, at least 1."""
    return 1 << (max(int(value), 1).bit_length() - 1)
