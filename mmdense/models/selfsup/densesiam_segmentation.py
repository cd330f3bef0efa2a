# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from math import log
from typing import Dict, List

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmdense.models.heads.slot_contrast_head import count_prototypes
from mmdense.models.losses import group_distillation, self_labelling
from mmdense.models.utils import align_maps
from mmdense.utils.errors import InputError

from .grouping import GroupsPixels


class DenseSiamSegmentation(GroupsPixels):
    """Assign each location to one of K classes without labels: the variant of
    :class:`DenseSiam` with a decoder, by the authors' code.

    https://github.com/ZwwWayne/DenseSiam. The sum of n_k, the locations of a class, is over all
    processes: theirs is over one, which is the same with one process.
    """

    group_name = ('class', 'classes')
    group_tensor = 'decoder.lateral_convs.0.weight'

    def segmentation_losses(self, inputs: List[Tensor], boxes: List[Tensor]) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            boxes (List[Tensor]): The boxes of both views, each N×4.

        Returns:
            Dict[str, Tensor]: ``loss_pixel``, ``loss_segmentation``, ``loss_region`` and
            ``loss_auxiliary``, weighted.
        """
        f, z, p = [], [], []  # maps NxCxHxW, scores NxKxHxW, and their predictions
        for view, pair in zip(inputs, (boxes, boxes[::-1])):
            # the second view is complete: its map is cropped to the place of the first
            f.append(align_maps(self.decoder(self.backbone(view)), *pair))
            z.append(self.neck(f[-1]))
            p.append(self.predictor(z[-1]))

        weight = self._class_shares(z) if self.rebalance else (None, None)  # 2xK
        losses = dict(
            loss_pixel=self._distil(p, z),
            loss_segmentation=0.5 * sum(map(self_labelling, z, weight)),
        )
        if self.region_head is not None:
            losses['loss_region'] = self.region_weight * self.region_head.loss(*zip(f, z))
        if self.auxiliary_neck is not None:
            z_aux, p_aux = [], []
            for maps in f:
                z_aux.append(self.auxiliary_neck(maps))
                p_aux.append(self.auxiliary_predictor(z_aux[-1]))
            # each branch weighs as much as the other's largest entropy
            most, most_aux = log(z[0].size(1)), log(z_aux[0].size(1))
            losses['loss_pixel'] *= most_aux / (most_aux + most)
            losses['loss_auxiliary'] = most / (most_aux + most) * self._distil(p_aux, z_aux)

        self.probe(
            global_=lambda: f[0].mean((2, 3)),
            dense=(f[0], f[1]),
            prototypes=lambda: count_prototypes(*z),
        )
        return losses

    @staticmethod
    def _distil(p: List[Tensor], z: List[Tensor]) -> Tensor:
        """Return the cross-entropy of predictions and the other view's scores, both directions."""
        plain = dict(student_temperature=1.0, teacher_temperature=1.0)
        return 0.5 * sum(group_distillation(a, b, **plain) for a, b in zip(p, z[::-1]))

    @staticmethod
    @torch.no_grad()
    def _class_shares(scores: List[Tensor]) -> Tensor:
        """Return each class's share of the locations of all processes, 2×K, a view a row."""
        counts = torch.stack([count_prototypes(score) for score in scores])
        all_reduce(counts)
        return counts / counts.sum(1, keepdim=True)

    @property
    def num_groups(self) -> int:
        """Return K."""
        return self.neck.out_channels

    @torch.no_grad()
    def group_scores(self, inputs: Tensor) -> Tensor:
        """Return the projector's scores of locations and classes.

        Args:
            inputs (Tensor): N×3×H×W.

        Returns:
            Tensor: N×K×h×w.
        """
        if self.decoder is None:
            raise InputError('DenseSiam without a decoder pretrains a backbone; it has no classes')
        return self.neck(self.decoder(self.backbone(inputs)))
