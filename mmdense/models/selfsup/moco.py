# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.layers import KeyQueue, MomentumEncoder
from mmdense.models.utils import shuffled_forward
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, Views
from .momentum import MomentumSelfSupervisor


@MODELS.register_module()
class MoCo(MomentumSelfSupervisor):
    """Contrast images with a queue of keys from a momentum encoder (MoCo v1 and v2).

    `Momentum Contrast for Unsupervised Visual Representation Learning
    <https://arxiv.org/abs/1911.05722>`_ (CVPR 2020), and `Improved Baselines with Momentum
    Contrastive Learning <https://arxiv.org/abs/2003.04297>`_: v1 and v2 differ in the projector,
    the temperature, the views and the schedule. Arguments are those of mmpretrain's
    ``MoCo``, whose checkpoints load into this one.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used.
        neck (dict): The projector: ``mmpretrain.LinearNeck`` in v1, ``mmpretrain.MoCoV2Neck`` in
            v2.
        head (dict): :class:`mmdense.models.heads.InfoNCEHead`.
        queue_len (int): Keys K in the queue, of any number. Defaults to 65536.
        feat_dim (int): Channels C of the projections. Defaults to 128.
        momentum (float): Momentum of the momentum encoder, one minus the paper's. Defaults to
            0.001 (the paper's 0.999).
        kwargs: Further arguments of :class:`SelfSupervisor`.
    """

    views = Views(trained=(1,))
    AUTHORS = (
        AuthorsFormat(  # v2
            source='MoCo v2',
            license='CC BY-NC 4.0',
            parts=('encoder_q.conv1.', 'encoder_q.fc.0.', 'encoder_k.', 'queue'),
            product='encoder_q.',
            network='query encoder',
            names={
                'encoder_q.fc.': 'neck.mlp.',
                'encoder_q.': 'backbone.',
                'encoder_k.fc.': 'encoder_k.module.1.mlp.',
                'encoder_k.': 'encoder_k.module.0.',
            },
        ),
        AuthorsFormat(
            source='MoCo v1',
            license='CC BY-NC 4.0',
            parts=('encoder_q.conv1.', 'encoder_q.fc.weight', 'encoder_k.', 'queue'),
            product='encoder_q.',
            network='query encoder',
            names={
                'encoder_q.fc.': 'neck.fc.',
                'encoder_q.': 'backbone.',
                'encoder_k.fc.': 'encoder_k.module.1.fc.',
                'encoder_k.': 'encoder_k.module.0.',
            },
        ),
        AuthorsFormat(
            source='OpenSelfSup MoCo',
            parts=('encoder_q.0.', 'encoder_k.0.', 'queue'),
            product='encoder_q.0.',
            network='query encoder',
            names={
                'encoder_q.0.': 'backbone.',
                'encoder_q.1.': 'neck.',
                'encoder_k.': 'encoder_k.module.',
            },
            duplicates=('backbone.',),  # encoder_q.0 again
        ),
        AuthorsFormat(source='mmpretrain', parts=('encoder_k', 'queue'), product='backbone.'),
    )
    MMPRETRAIN_TYPES = {'ContrastiveHead': 'mmdense.InfoNCEHead'}

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        queue_len: int = 65536,
        feat_dim: int = 128,
        momentum: float = 0.001,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('MoCo needs a neck and a head')
        self.encoder_k = MomentumEncoder(self.online_network(), momentum)
        self.queue = KeyQueue(feat_dim, queue_len)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (MoCo, algorithm 1).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Only :meth:`more_losses` uses them.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar (equation 1).
        """
        self.check_views(inputs)
        view_q, view_k = inputs
        q, *rest_q = self._encode(self.online_network(), view_q)  # NxC

        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            k, *rest_k = shuffled_forward(  # NxC
                lambda x: self._encode(self.encoder_k.module, x),
                view_k,
                seed=self.encoder_k.num_updates(),
            )

        loss = self.head.loss(q, k, self.queue.keys)
        self.queue.enqueue(k)
        self.probe(global_=(q, k))
        more = self.more_losses([(q, *rest_q), None], [None, (k, *rest_k)], data_samples)
        return dict(loss=loss, **more)

    @property
    def queue_ptr(self) -> Tensor:
        """Return the place of the queue's oldest key, which mmpretrain calls so."""
        return self.queue.ptr

    @staticmethod
    def _encode(encoder: nn.Module, x: Tensor) -> Tuple[Tensor, ...]:
        """Return N×C projections, normalised, and what else the neck returns as it is."""
        projection, *rest = encoder(x)
        return normalize(projection.float(), dim=1), *rest
