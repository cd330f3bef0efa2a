# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Contrast regions that images swap with each other (RegionCL-M, -D and -S)."""

from typing import Dict, List, Optional

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.layers import enqueue
from mmdense.models.utils import (
    gather_locations,
    in_float32,
    match_entropy,
    match_locations,
    shuffled_forward,
)
from mmdense.models.utils.similarity import flatten_rows
from mmdense.registry import MODELS

from .base import Views
from .densecl import DenseCL
from .moco import MoCo
from .simsiam import SimSiam

SWAP = dict(type='mmdense.RegionSwap')


def contrast_regions(
    head, canvas: Tensor, paste: Tensor, key: Tensor, partner: Tensor, queue: Tensor
) -> Tensor:
    """Return the InfoNCE of the two regions of each mixed image.

    Row b of ``canvas`` shows image b, row b of ``paste`` its partner. Each is the other's negative
    in addition to the queue, as a constant.

    Args:
        head (InfoNCEHead): Gives the loss.
        canvas (Tensor): N×C, normalised.
        paste (Tensor): N×C, normalised.
        key (Tensor): N×C, keys of the images, normalised.
        partner (Tensor): N, indices of images.
        queue (Tensor): C×K.

    Returns:
        Tensor: A scalar, the mean over 2N rows.
    """
    query = torch.cat([canvas, paste])  # 2NxC
    same_mixed_image = torch.cat([paste, canvas])
    return head.loss(query, torch.cat([key, key[partner]]), queue, same_mixed_image)


@MODELS.register_module()
class RegionCL(MoCo):
    """Contrast images, and regions that they swap, with a queue of keys (RegionCL-M).

    `RegionCL: Can Simple Region Swapping Contribute to Contrastive Learning?
    <https://arxiv.org/abs/2111.12309>`_ (ECCV 2022), on MoCo v2. The query view goes through the
    network once more, with a rectangle of another image in it. The features outside and inside of
    the rectangle are told apart from each other and from the queue; their positives are the keys
    of the images that they show.

    Args:
        swap (dict): :class:`mmdense.models.layers.RegionSwap`.
        kwargs: Arguments of :class:`MoCo`. The head is
            :class:`mmdense.models.heads.InfoNCEHead`.
    """

    views = Views(trained=(2,))  # the query view as it is, and with the rectangle
    AUTHORS = ()  # their code's files have the names of MoCo's

    def __init__(self, *args, swap: dict = SWAP, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.swap = MODELS.build(swap)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_instance``, MoCo's, and ``loss_region``, the mean over
            canvas and pasted region of each image.
        """
        self.check_views(inputs)
        view_q, view_k = inputs

        # queries of the view, and of the two regions of its mixed images: NxC
        maps = self.backbone(view_q)
        q = normalize(self.neck(maps)[0].float(), dim=1)
        region = self.swap.draw(view_q, maps[-1].shape[2:])
        pooled = torch.cat(region.pool(self.backbone(region.mix(view_q))[-1]))  # 2NxC'
        regions = normalize(self.neck((pooled[:, :, None, None],))[0].float(), dim=1)
        canvas, paste = regions.chunk(2)

        # keys of the other view, which is never mixed: NxC
        with torch.no_grad():
            self.encoder_k.update(self.online_network())
            (k,) = shuffled_forward(
                lambda x: (self._encode(self.encoder_k.module, x),),
                view_k,
                seed=self.encoder_k.num_updates(),
            )

        loss_instance = self.head.loss(q, k, self.queue.keys)
        loss_region = contrast_regions(
            self.head, canvas, paste, k, region.partner, self.queue.keys
        )
        self.queue.enqueue(k)
        self.probe(global_=(q, k), region=(paste, k[region.partner]))
        return dict(loss_instance=loss_instance, loss_region=loss_region)


@MODELS.register_module()
class RegionCLD(DenseCL):
    """Contrast images, locations, and regions that images swap (RegionCL-D).

    RegionCL (https://arxiv.org/abs/2111.12309) on DenseCL. The authors published results of it and
    no code. Ours: DenseCL's two losses on the query view, and the region loss of
    :class:`RegionCL` by the global projector and the queue of global keys, with weight 1.

    Args:
        swap (dict): :class:`mmdense.models.layers.RegionSwap`.
        kwargs: Arguments of :class:`DenseCL`.
    """

    views = Views(trained=(2,))
    AUTHORS = ()

    def __init__(self, *args, swap: dict = SWAP, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.swap = MODELS.build(swap)

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
        loss_region = contrast_regions(
            self.head, canvas, paste, k, region.partner, self.queue.keys
        )
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


@MODELS.register_module()
class RegionCLS(SimSiam):
    """Predict projections of images from regions that they swap, without negatives (RegionCL-S).

    RegionCL (https://arxiv.org/abs/2111.12309) on SimSiam. The authors published results of it and
    no code. Ours: both views are mixed, by one rectangle, and each region predicts the projection
    of the other view of the image that it shows. The view itself is not mixed there.

    Args:
        swap (dict): :class:`mmdense.models.layers.RegionSwap`.
        kwargs: Arguments of :class:`SimSiam`.
    """

    views = Views(trained=(4,))  # both views as they are, and with the rectangle
    AUTHORS = ()

    def __init__(self, *args, swap: dict = SWAP, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.swap = MODELS.build(swap)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_instance``, SimSiam's, and ``loss_region``, each in [-1, 1].
        """
        self.check_views(inputs)
        compare = in_float32(self.head.loss)
        maps = [self.backbone(view)[-1] for view in inputs]
        z_1, z_2 = (self.neck((m,))[0] for m in maps)  # projections of the views: NxC
        loss_instance = 0.5 * (compare(z_1, z_2) + compare(z_2, z_1))

        region = self.swap.draw(inputs[0], maps[0].shape[2:])
        loss_region = 0.0
        for view, target in zip(inputs, (z_2, z_1)):
            canvas, paste = region.pool(self.backbone(region.mix(view))[-1])
            z = self.neck((torch.cat([canvas, paste])[:, :, None, None],))[0]  # 2NxC
            # the canvas shows the image itself, the pasted region its partner
            shown = torch.cat([target, target[region.partner]])
            loss_region = loss_region + 0.5 * compare(z, shown)

        self.probe(global_=(z_1, z_2), region=(z, shown))
        return dict(loss_instance=loss_instance, loss_region=loss_region)
