# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.layers import KeyQueue, MomentumEncoder, enqueue
from mmdense.models.utils import map_channels, shuffled_forward, split_patches
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError

from .base import Views
from .momentum import MomentumSelfSupervisor

PAIRINGS = ('gg', 'll', 'gl')


@MODELS.register_module()
class DetCo(MomentumSelfSupervisor):
    """Contrast images and sets of patches at every stage of the backbone (DetCo).

    `DetCo: Unsupervised Contrastive Learning for Object Detection
    <https://arxiv.org/abs/2102.04803>`_ (ICCV 2021). Its authors released
    weights and no pretraining code; this follows the paper.

    Args:
        backbone (dict): A backbone that returns a map for each stage
            (``out_indices``); the last ``len(stage_weights)`` are used. It must
            not compute stages beyond (ResNet's ``num_stages``), whose
            parameters would get no gradient.
        neck (dict): :class:`mmdense.models.necks.DetCoNeck`, without
            ``in_channels``, which are read from the backbone.
        head (dict): :class:`mmdense.models.heads.InfoNCEHead`.
        queue_len (int): Keys K in each queue. Defaults to 65536.
        feat_dim (int): Channels C of the projections. Defaults to 128.
        momentum (float): Momentum of the momentum encoder, one minus the
            paper's. Defaults to 0.001 (the paper's 0.999).
        stage_weights (Sequence[float]): Weight of each stage, the last one
            last, above 0. Defaults to (0.1, 0.4, 0.7, 1.0).
        pairings (Sequence[str]): What is contrasted: 'gg' global query and
            key, 'll' local query and key, 'gl' local query and GLOBAL key.
            Without 'll' and 'gl' there are no patches. Defaults to all three.
        kwargs: ``pretrained``, ``data_preprocessor`` and ``init_cfg`` of
            :class:`SelfSupervisor`.
    """

    views = Views(groups=(2, 2), trained=(1, 1), patches=True)

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        queue_len: int = 65536,
        feat_dim: int = 128,
        momentum: float = 0.001,
        stage_weights: Sequence[float] = (0.1, 0.4, 0.7, 1.0),
        pairings: Sequence[str] = PAIRINGS,
        **kwargs,
    ) -> None:
        super().__init__(backbone, head=head, **kwargs)
        if not isinstance(neck, dict) or head is None:
            raise InputError('DetCo needs a neck, given as a dict, and a head')
        if not set(pairings) <= set(PAIRINGS) or 'gg' not in pairings:
            # without it nothing would train the global heads, which the other pairing's keys need
            raise InputError(
                f"pairings must be 'gg' and perhaps others of {PAIRINGS}, got {pairings!r}"
            )
        if not isinstance(stage_weights, (list, tuple)) or not stage_weights:
            raise InputError(f'stage_weights must list a weight by stage, got {stage_weights!r}')
        for weight in stage_weights:
            check_above_zero(stage_weights=weight)
        channels = map_channels(self.backbone)
        if len(channels) < len(stage_weights):
            raise InputError(
                f'stage_weights has {len(stage_weights)} stages, but the backbone returns '
                f'{len(channels)} maps: set its out_indices, or give fewer weights'
            )
        self.pairings = tuple(pairings)
        self.with_local = 'll' in pairings or 'gl' in pairings
        if not self.with_local:
            self.views = Views(trained=(1,))
        self.stage_weights = tuple(stage_weights)
        # ResNet's stages are 2 to 5 in the paper
        indices = getattr(self.backbone, 'out_indices', range(4 - len(channels), 4))
        self.stages = [index + 2 for index in sorted(indices)[-len(stage_weights) :]]
        self.neck = MODELS.build(
            dict(neck, in_channels=channels[-len(stage_weights) :], with_local=self.with_local)
        )
        self.encoder_k = MomentumEncoder(self.online_network(), momentum)
        self.queues_global = self._queues(feat_dim, queue_len)
        self.queues_local = self._queues(feat_dim, queue_len) if 'll' in pairings else None

    def _queues(self, feat_dim: int, queue_len: int) -> nn.ModuleList:
        return nn.ModuleList(KeyQueue(feat_dim, queue_len) for _ in self.stages)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W, and
                with local pairings two sets of patches, each
                N×3×P×(grid²·P) as :class:`mmdense.datasets.JigsawPatches`
                makes them. The first of both are the queries.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_gg_stage2`` and so on, for each pairing
            and stage, weighted by the stage; their sum is the paper's loss
            (equation 3).
        """
        self.check_views(inputs)
        view_q, view_k, *patches = inputs
        patches_q, patches_k = patches or (None, None)

        # queries: NxC, for each stage
        q_global, q_local = self._encode(self.backbone, self.neck, view_q, patches_q)

        # keys, from the momentum encoder
        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            k_global, k_local = self._keys(view_k, patches_k if 'll' in self.pairings else None)

        losses = {}
        for i, (stage, weight) in enumerate(zip(self.stages, self.stage_weights)):
            # query, key, queue; local queries are also contrasted with GLOBAL keys
            pairs = dict(gg=(q_global, k_global, self.queues_global))
            if self.with_local:
                pairs['ll'] = (q_local, k_local, self.queues_local)
                pairs['gl'] = (q_local, k_global, self.queues_global)
            for pairing in self.pairings:
                query, key, queue = pairs[pairing]
                loss = self.head.loss(query[i], key[i], queue[i].keys)
                losses[f'loss_{pairing}_stage{stage}'] = weight * loss

        enqueue(*zip(self.queues_global, k_global), *zip(self.queues_local or (), k_local))
        last = dict(global_=(q_global[-1], k_global[-1]))
        if k_local:
            last['local'] = (q_local[-1], k_local[-1])
        self.probe(**last)
        return losses

    def _keys(self, view: Tensor, patches: Optional[Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
        """Encode keys as :meth:`_encode`, by the momentum encoder.

        An image and its patches meet the same others in BatchNorm: one permutation for both.
        """

        def encode(*inputs: Tensor) -> Tuple[Tensor, ...]:
            global_, local = self._encode(*self.encoder_k.module, *inputs)
            return (*global_, *local)

        views = [view] if patches is None else [view, patches]
        keys = shuffled_forward(encode, *views, seed=self.encoder_k.num_updates())
        return list(keys[: len(self.stages)]), list(keys[len(self.stages) :])

    def _encode(
        self, backbone: nn.Module, neck: nn.Module, view: Tensor, patches: Optional[Tensor] = None
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Return N×C features for each stage, normalised: of images, and of sets of patches."""
        num_stages = len(self.stages)
        global_ = [normalize(x.float(), dim=1) for x in neck(backbone(view)[-num_stages:])]
        if patches is None:
            return global_, []
        # all patches of the batch at once
        maps = backbone(split_patches(patches, neck.grid))[-num_stages:]
        return global_, [normalize(x.float(), dim=1) for x in neck.forward_local(maps)]
