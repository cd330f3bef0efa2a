# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import RunFacts, SelfSupervisor, Setting


@MODELS.register_module()
class SimCLR(SelfSupervisor, BaseSelfSupervisor):
    """Contrast the images of a batch with each other (SimCLR).

    `A Simple Framework for Contrastive Learning of Visual Representations
    <https://arxiv.org/abs/2002.05709>`_ (ICML 2020). Arguments and state dict are those of
    mmpretrain's ``SimCLR``, whose checkpoints load into this one. With several processes the loss
    and its gradient are those of the joined batch.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used.
        neck (dict): The projector, :class:`mmdense.models.necks.SimCLRNeck`.
        head (dict): :class:`mmdense.models.heads.NTXentHead`.
        kwargs: Further arguments of :class:`SelfSupervisor`.
    """

    MMPRETRAIN_TYPES = {'ContrastiveHead': 'mmdense.NTXentHead'}

    def __init__(self, backbone: dict, neck: dict, head: dict, **kwargs) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('SimCLR needs a neck and a head')

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, algorithm 1).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W and of one size.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar: the sum of the two directions' means.
        """
        self.check_views(inputs)
        # BatchNorm sees both views: one batch of 2N, all first views first
        z = self.neck(self.backbone(torch.cat(inputs)))[0]
        first, second = normalize(z.float(), dim=1, eps=1e-6).chunk(2)  # NxC
        self.probe(global_=(first, second))
        return dict(loss=self.head.loss(first, second))

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the number of negatives, which the batch decides (paper, section 5.1)."""
        negatives, reason = 2 * (facts.batch - 1), 'the other views of a batch'
        if facts.batch < 256:
            reason += '; few: a larger batch has more, or a method with a queue'
        return [Setting('negatives', f'{negatives:,}', reason)]
