# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from torch import Tensor

from mmdense.models.layers import MomentumEncoder
from mmdense.models.utils.authors_names import mlp_names, name_vit_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat
from .momentum import MomentumSelfSupervisor


def _names(head: str) -> Dict[str, str]:
    """Return the authors' names of projector, predictor and encoders, and ours."""
    return {
        **mlp_names(f'base_encoder.{head}.', 'neck.'),
        'base_encoder.': 'backbone.',
        **mlp_names(f'momentum_encoder.{head}.', 'encoder_k.module.1.'),
        'momentum_encoder.': 'encoder_k.module.0.',
        **mlp_names('predictor.', 'head.predictor.'),
    }


@MODELS.register_module()
class MoCoV3(MomentumSelfSupervisor):
    """Predict and contrast the momentum encoder's keys within the batch (MoCo v3).

    `An Empirical Study of Training Self-Supervised Vision Transformers
    <https://arxiv.org/abs/2104.02057>`_ (ICCV 2021). Arguments are those of mmpretrain's
    ``MoCoV3``, whose checkpoints load into this one.

    Args:
        backbone (dict): Any backbone that returns feature maps, of which the last one is used; or
            :class:`mmdense.models.backbones.MoCoV3ViT`, whose class token is used.
        neck (dict): The projector, ``mmpretrain.NonLinearNeck``.
        head (dict): :class:`mmdense.models.heads.InfoNCEPredictionHead`.
        base_momentum (float): Momentum of the momentum encoder at the first step, one minus the
            paper's; it falls to 0 along a cosine. Defaults to 0.01 (the published code's 0.99).
        total_steps (int, optional): Steps of the complete run. None takes those of MMEngine's
            runner.
        kwargs: Further arguments of :class:`SelfSupervisor`.
    """

    AUTHORS = (
        AuthorsFormat(
            source='MoCo v3',
            license='CC BY-NC 4.0',
            parts=('base_encoder.conv1.', 'momentum_encoder.', 'predictor.'),
            product='base_encoder.',
            network='base encoder',
            names=_names('fc'),
        ),
        AuthorsFormat(  # a ViT
            source='MoCo v3',
            license='CC BY-NC 4.0',
            parts=('base_encoder.patch_embed.', 'momentum_encoder.', 'predictor.'),
            product='base_encoder.',
            network='base encoder',
            names=_names('head'),
        ),
        AuthorsFormat(
            source='mmpretrain',
            parts=('momentum_encoder',),
            product='backbone.',
            names={'momentum_encoder.': 'encoder_k.'},
        ),
    )
    MMPRETRAIN_TYPES = {
        'MoCoV3Head': 'mmdense.InfoNCEPredictionHead',
        'MoCoV3ViT': 'mmdense.MoCoV3ViT',
    }

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        base_momentum: float = 0.01,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('MoCoV3 needs a neck and a head')
        self.encoder_k = MomentumEncoder(self.online_network(), base_momentum, 0.0, total_steps)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, algorithm 1).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar, the sum of two directions.
        """
        self.check_views(inputs)
        online = self.online_network()
        z_1, z_2 = (online(view)[0] for view in inputs)  # NxC

        with torch.no_grad():
            self.encoder_k.update(online)
            k_1, k_2 = (self.encoder_k.module(view)[0] for view in inputs)

        loss = self.head.loss(z_1, k_2) + self.head.loss(z_2, k_1)
        self.probe(global_=(z_1, k_2))
        return dict(loss=loss)

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors with mmpretrain's names of a ViT's layers, and the number of
        updates of the momentum encoder."""
        return super().complete_authors_state(name_vit_layers(tensors))
