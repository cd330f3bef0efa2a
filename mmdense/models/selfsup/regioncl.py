# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.heads import InfoNCEHead
from mmdense.models.utils import shuffled_forward
from mmdense.registry import MODELS

from .base import Views
from .moco import MoCo


class SwapsRegions:
    """Hold what swaps regions between images: a mixin, before the algorithm that RegionCL is on.

    Args:
        swap (dict, optional): :class:`mmdense.models.layers.RegionSwap`. Defaults to its defaults.
        args, kwargs: Arguments of the algorithm.
    """

    AUTHORS = ()  # no file was released, and their code has the names of MoCo's

    def __init__(self, *args, swap: Optional[dict] = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.swap = MODELS.build(swap or dict(type='mmdense.RegionSwap'))


def contrast_regions(
    head: InfoNCEHead,
    canvas: Tensor,
    paste: Tensor,
    key: Tensor,
    partner: Tensor,
    queue: Tensor,
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
class RegionCL(SwapsRegions, MoCo):
    """Contrast images, and regions that they swap, with a queue of keys (RegionCL-M).

    `RegionCL: Can Simple Region Swapping Contribute to Contrastive Learning?
    <https://arxiv.org/abs/2111.12309>`_ (ECCV 2022), on MoCo v2. The query view goes through the
    network once more, with a rectangle of another image in it. The features outside and inside of
    the rectangle are told apart from each other and from the queue; their positives are the keys
    of the images that they show.

    Args:
        swap (dict, optional): :class:`mmdense.models.layers.RegionSwap`. Defaults to its
            defaults.
        kwargs: Arguments of :class:`MoCo`. The head is
            :class:`mmdense.models.heads.InfoNCEHead`.
    """

    views = Views(trained=(2,))  # the query view as it is, and with the rectangle

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
                lambda x: self._encode(self.encoder_k.module, x),
                view_k,
                seed=self.encoder_k.num_updates(),
            )

        loss_instance = self.head.loss(q, k, self.queue.keys)
        loss_region = contrast_regions(self.head, canvas, paste, k, region.partner, self.queue.keys)
        self.queue.enqueue(k)
        self.probe(global_=(q, k), region=(paste, k[region.partner]))
        return dict(loss_instance=loss_instance, loss_region=loss_region)
