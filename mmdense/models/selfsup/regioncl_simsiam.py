# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from torch import Tensor

from mmdense.models.utils import in_float32
from mmdense.registry import MODELS

from .base import Views
from .regioncl import SwapsRegions
from .simsiam import SimSiam


@MODELS.register_module()
class RegionCLS(SwapsRegions, SimSiam):
    """Predict projections of images from regions that they swap, without negatives (RegionCL-S).

    RegionCL (https://arxiv.org/abs/2111.12309) on SimSiam. The authors published results of it and
    no code. Ours: both views are mixed, by one rectangle, and each region predicts the projection
    of the other view of the image that it shows. The view itself is not mixed there.

    Args:
        swap (dict, optional): :class:`mmdense.models.layers.RegionSwap`. Defaults to its
            defaults.
        kwargs: Arguments of :class:`SimSiam`.
    """

    views = Views(trained=(4,))  # both views as they are, and with the rectangle

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
