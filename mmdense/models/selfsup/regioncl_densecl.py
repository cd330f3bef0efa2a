# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.layers import enqueue
from mmdense.models.utils import gather_locations, match_entropy, match_locations, shuffled_forward
from mmdense.models.utils.similarity import flatten_rows
from mmdense.registry import MODELS

from .base import Views
from .densecl import DenseCL
from .regioncl import SwapsRegions, contrast_regions


@MODELS.register_module()
class RegionCLD(SwapsRegions, DenseCL):
    """Contrast images, locations, and regions that images swap (RegionCL-D).

    RegionCL (https://arxiv.org/abs/2111.12309) on DenseCL. The authors published results of it and
    no code. Ours: DenseCL's two losses on the query view, and the region loss of
    :class:`RegionCL` by the global projector and the queue of global keys, with weight 1.

    Args:
        swap (dict, optional): :class:`mmdense.models.layers.RegionSwap`. Defaults to its
            defaults.
        kwargs: Arguments of :class:`DenseCL`.
    """

    views = Views(trained=(2,))

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_single`` and ``loss_dense``, DenseCL's, weighted by 1 − λ
            and λ, and ``loss_region``.
        """
        self.check_views(inputs)
        view_q, view_k = inputs

        # queries: maps, NxC, NxCxS; and of the two regions of the mixed images, NxC
        maps = self.backbone(view_q)
        map_q, q, grid_q, _ = self._project(self.neck, maps)
        region = self.swap.draw(view_q, maps[-1].shape[2:])
        pooled = torch.cat(region.pool(self.backbone(region.mix(view_q))[-1]))  # 2NxC'
        canvas, paste = normalize(self.neck.mlp(pooled).float(), dim=1).chunk(2)

        # keys, from the momentum encoder: NxC, NxCxS, NxC
        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            map_k, k, grid_k, mean_k = shuffled_forward(
                lambda x: self._encode(*self.encoder_k.module, x),
                view_k,
                seed=self.encoder_k.num_updates(),
            )
            match = match_locations(map_q, map_k)  # NxS
            positive = gather_locations(grid_k, match)  # NxCxS

        loss_single = self.head.loss(q, k, self.queue.keys)
        loss_dense = self.head.loss(flatten_rows(grid_q), flatten_rows(positive), self.queue2.keys)
        loss_region = contrast_regions(self.head, canvas, paste, k, region.partner, self.queue.keys)
        enqueue((self.queue, k), (self.queue2, mean_k))
        self.probe(
            global_=(q, k),
            dense=(grid_q, positive),
            region=(paste, k[region.partner]),
            match_entropy=lambda: match_entropy(match),
        )
        return dict(
            loss_single=(1 - self.loss_lambda) * loss_single,
            loss_dense=self.loss_lambda * loss_dense,
            loss_region=loss_region,
        )
