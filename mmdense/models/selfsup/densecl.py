# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import ceil
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.layers import KeyQueue, MomentumEncoder, enqueue
from mmdense.models.utils import gather_locations, match_entropy, match_locations, shuffled_forward
from mmdense.models.utils.similarity import flatten_rows
from mmdense.registry import MODELS
from mmdense.utils.checks import check_fractions
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, Setting, Views
from .momentum import MomentumSelfSupervisor


@MODELS.register_module()
class DenseCL(MomentumSelfSupervisor):
    """Contrast images, and their matched locations (DenseCL).

    `Dense Contrastive Learning for Self-Supervised Visual Pre-Training
    <https://arxiv.org/abs/2011.09157>`_ (CVPR 2021). Arguments and state dict
    are those of mmpretrain's ``DenseCL``, whose checkpoints load into this one.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one
            is used.
        neck (dict): :class:`mmdense.models.necks.DenseCLNeck`.
        head (dict): :class:`mmdense.models.heads.InfoNCEHead`.
        queue_len (int): Keys K in each of the two queues. Defaults to 65536.
        feat_dim (int): Channels C of the projections. Defaults to 128.
        momentum (float): Momentum of the momentum encoder, one minus the
            paper's. Defaults to 0.001 (the paper's 0.999).
        loss_lambda (float): λ in [0, 1], weight of the dense loss; the global
            one gets 1 − λ. Defaults to 0.5.
        kwargs: ``pretrained``, ``data_preprocessor`` and ``init_cfg`` of
            :class:`SelfSupervisor`.
    """

    views = Views(trained=(1,))
    AUTHORS = (
        AuthorsFormat(
            source='OpenSelfSup DenseCL',
            parts=('encoder_q.0.', 'encoder_k.0.', 'queue2'),
            product='encoder_q.0.',
            names={
                'encoder_q.0.': 'backbone.',
                'encoder_q.1.': 'neck.',
                'encoder_k.': 'encoder_k.module.',
            },
            duplicates=('backbone.',),  # encoder_q.0 again
        ),
        AuthorsFormat(source='mmpretrain', parts=('queue2',), product='backbone.'),
    )
    MMPRETRAIN_TYPES = {
        'DenseCLNeck': 'mmdense.DenseCLNeck',
        'ContrastiveHead': 'mmdense.InfoNCEHead',
    }

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        queue_len: int = 65536,
        feat_dim: int = 128,
        momentum: float = 0.001,
        loss_lambda: float = 0.5,
        **kwargs,
    ) -> None:
        check_fractions(loss_lambda=loss_lambda)
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('DenseCL needs a neck and a head')
        self.encoder_k = MomentumEncoder(self.online_network(), momentum)
        self.loss_lambda = loss_lambda
        self.queue = KeyQueue(feat_dim, queue_len)
        self.queue2 = KeyQueue(feat_dim, queue_len)  # dense keys

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_single`` and ``loss_dense``, weighted by
            1 − λ and λ; their sum is the paper's loss (equation 4).
        """
        self.check_views(inputs)
        view_q, view_k = inputs

        # queries: maps, NxC, NxCxS
        map_q, q, grid_q, _ = self._encode(self.backbone, self.neck, view_q)

        # keys, from the momentum encoder: NxC, NxCxS, NxC
        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            map_k, k, grid_k, mean_k = shuffled_forward(
                lambda x: self._encode(*self.encoder_k.module, x),
                view_k,
                seed=self.encoder_k.num_updates(),
            )
            # the key of a query location is the location most similar in the backbone
            match = match_locations(map_q, map_k)  # NxS
            positive = gather_locations(grid_k, match)  # NxCxS

        loss_single = self.head.loss(q, k, self.queue.keys)
        loss_dense = self.head.loss(flatten_rows(grid_q), flatten_rows(positive), self.queue2.keys)

        enqueue((self.queue, k), (self.queue2, mean_k))
        self.probe(
            global_=(q, k),
            dense=(grid_q, positive),
            match_entropy=lambda: match_entropy(match),
        )

        return dict(
            loss_single=(1 - self.loss_lambda) * loss_single,
            loss_dense=self.loss_lambda * loss_dense,
        )

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the queues' length, and when the dense loss starts: in a short run from random
        weights it waits until features are there to match locations by."""
        when, reason, hooks = 'from the start', "the recipe's", []
        if facts.init:
            reason = 'features are there to match locations by'
        elif facts.steps < 20_000:
            start = min(1000, ceil(facts.steps / 4))
            when = f'from step {start + 1}'  # counted from 1, as in the log
            reason = 'until then locations would be matched by random features'
            hooks = [dict(type='LambdaWarmupHook', start_iters=start)]
        rule = Setting('dense loss', when, reason, {'custom_hooks': hooks})
        return [*super().small_data_rules(facts), rule]

    @property
    def queue_ptr(self) -> Tensor:
        """Return the place of the oldest key in the queue, which mmpretrain calls so."""
        return self.queue.ptr

    @property
    def queue2_ptr(self) -> Tensor:
        """Return the place of the oldest key in the queue of dense keys."""
        return self.queue2.ptr

    @classmethod
    def _encode(cls, backbone: nn.Module, neck: nn.Module, x: Tensor) -> Tuple[Tensor, ...]:
        return cls._project(neck, backbone(x))

    @staticmethod
    def _project(neck: nn.Module, maps: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Return the backbone's map on the neck's grid (no gradient) and the neck's three outputs,
        all normalised over channels."""
        vector, dense, dense_mean = neck(maps)
        with torch.no_grad():
            feat = neck.pool(maps[-1]).flatten(2)
        return tuple(normalize(y.float(), dim=1) for y in (feat, vector, dense, dense_mean))
