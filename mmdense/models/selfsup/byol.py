# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from torch import Tensor

from mmdense.models.layers import MomentumEncoder
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat
from .momentum import MomentumSelfSupervisor


@MODELS.register_module()
class BYOL(MomentumSelfSupervisor):
    """Predict the momentum encoder's projection of the other view, without negatives (BYOL).

    `Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning
    <https://arxiv.org/abs/2006.07733>`_ (NeurIPS 2020). The momentum encoder is the paper's target
    network. Arguments are those of mmpretrain's ``BYOL``, whose checkpoints load into this one.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used.
        neck (dict): The projector, ``mmpretrain.NonLinearNeck``.
        head (dict): :class:`mmdense.models.heads.CosinePredictionHead`.
        base_momentum (float): Momentum of the momentum encoder at the first step, one minus the
            paper's; it falls to 0 along a cosine (appendix B). Defaults to 0.004 (the paper's
            0.996, for 1000 epochs).
        total_steps (int, optional): Steps of the complete run. None takes those of MMEngine's
            runner.
        kwargs: Further arguments of :class:`SelfSupervisor`.
    """

    AUTHORS = (
        AuthorsFormat(
            source='mmpretrain',
            parts=('target_net',),
            product='backbone.',
            names={'target_net.': 'encoder_k.'},
        ),
    )
    MMPRETRAIN_TYPES = {'LatentPredictHead': 'mmdense.CosinePredictionHead'}

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        base_momentum: float = 0.004,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('BYOL needs a neck and a head')
        self.encoder_k = MomentumEncoder(self.online_network(), base_momentum, 0.0, total_steps)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, equations 2 and 3).

        The paper updates the target network at the end of a step. Here it is updated before its
        forward pass of the next step, which is the same but for the place on the cosine of its
        momentum: one step later, which changes the momentum of a run of K steps by at most π/2K of
        its first value.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Only :meth:`more_losses` uses them.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar in [0, 8]: the sum of two directions, 4 where
            prediction and target are unrelated.
        """
        self.check_views(inputs)
        online = self.online_network()
        outputs = [online(view) for view in inputs]

        with torch.no_grad():
            self.encoder_k.update(online)
            targets = [self.encoder_k.module(view) for view in inputs]

        (z_1, *_), (z_2, *_) = outputs  # NxC
        (target_1, *_), (target_2, *_) = targets
        loss = self.head.loss(z_1, target_2) + self.head.loss(z_2, target_1)
        self.probe(global_=(z_1, target_2))
        return dict(loss=loss, **self.more_losses(outputs, targets, data_samples))
