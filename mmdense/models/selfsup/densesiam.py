# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional

import torch
from mmengine.dist import all_reduce
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmdense.models.losses import negative_cosine
from mmdense.models.utils import align_maps, view_boxes, views_overlap
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, SelfSupervisor, Setting, Views
from .densesiam_segmentation import DenseSiamSegmentation
from .simsiam import SimSiam


@MODELS.register_module()
class DenseSiam(DenseSiamSegmentation, SelfSupervisor, BaseSelfSupervisor):
    """Predict each location of a view from the same place in the other view (DenseSiam).

    `Dense Siamese Network for Dense Unsupervised Learning <https://arxiv.org/abs/2203.11075>`_
    (ECCV 2022). There is no momentum encoder, and there are no negatives between locations.

    Without ``decoder`` it pretrains a backbone, by a dense and an image branch and optionally by
    regions. The authors have released no code of this variant: the paper's idea is theirs, every
    width, weight and the place of the alignment are ours.

    With ``decoder`` it learns to segment images without labels. That variant follows the authors'
    code: each location is assigned to one of K classes, :meth:`predict` returns the class of every
    pixel. The second view's box is the complete square that the first view is cut from, so the
    maps of the second view are cropped behind the network.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one is used, and with
            ``decoder`` all of them.
        neck (dict): The projector: :class:`mmdense.models.necks.DenseSiamNeck`, or with
            ``decoder`` :class:`mmdense.models.necks.ProjectionMLP` from C channels to K.
        predictor (dict): :class:`mmdense.models.necks.ProjectionMLP` on the neck's dense output.
        image_predictor (dict, optional): The same, with ``dense=False``, on the output of the
            neck's image branch.
        image_weight (float): Weight of the image loss, above 0. Defaults to 1.
        decoder (dict, optional): :class:`mmdense.models.necks.DenseSiamDecoder`.
        auxiliary_neck (dict, optional): With ``decoder``: a second projector, to A channels.
        auxiliary_predictor (dict, optional): The predictor on ``auxiliary_neck``.
        region_neck (dict, optional): Without ``decoder``: the projector whose channels are the
            classes of the region loss.
        region_head (dict, optional): :class:`mmdense.models.heads.RegionContrastHead`. None is
            without the region loss.
        region_weight (float): Weight of the region loss, above 0;
            :class:`mmdense.engine.RegionWarmupHook` keeps it at 0 in the first epochs. Defaults
            to 0.1.
        rebalance (bool): With ``decoder``: whether the segmentation loss weighs a class by its
            share of the batch's locations, as in the released config: frequent classes weigh
            more. Defaults to True.
        kwargs: Arguments of :class:`SelfSupervisor`.
    """

    views = Views(boxes=True)
    AUTHORS = (
        AuthorsFormat(
            source='DenseSiam',
            parts=('decoder.layer1.', 'kernel_projector.0.'),
            product='backbone.',
            names={
                **{f'decoder.layer{4 - i}.': f'decoder.lateral_convs.{i}.' for i in range(4)},
                **{
                    f'{theirs}.': f'{ours}.mlp.'
                    for theirs, ours in (
                        ('projector', 'neck'),
                        ('predictor', 'predictor'),
                        ('aux_projector', 'auxiliary_neck'),
                        ('aux_predictor', 'auxiliary_predictor'),
                        ('kernel_projector', 'region_head.projector'),
                        ('kernel_predictor', 'region_head.predictor'),
                    )
                },
            },
        ),
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        predictor: dict,
        image_predictor: Optional[dict] = None,
        image_weight: float = 1.0,
        decoder: Optional[dict] = None,
        auxiliary_neck: Optional[dict] = None,
        auxiliary_predictor: Optional[dict] = None,
        region_neck: Optional[dict] = None,
        region_head: Optional[dict] = None,
        region_weight: float = 0.1,
        rebalance: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, **kwargs)
        check_above_zero(image_weight=image_weight, region_weight=region_weight)
        parts = dict(
            neck=neck,
            predictor=predictor,
            image_predictor=image_predictor,
            decoder=decoder,
            auxiliary_neck=auxiliary_neck,
            auxiliary_predictor=auxiliary_predictor,
            region_neck=region_neck,
            region_head=region_head,
        )
        _check_parts(parts)
        for name, part in parts.items():
            if name != 'neck':
                setattr(self, name, part and MODELS.build(part))
        image_branch = getattr(self.neck, 'image', None)
        if decoder is None and (image_branch is None) != (image_predictor is None):
            raise InputError(
                'DenseSiam needs both of image_branch=True in the neck and image_predictor, or '
                'neither'
            )
        self.image_weight = image_weight
        self.region_weight = region_weight
        self.rebalance = rebalance

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4.

        Returns:
            Dict[str, Tensor]: ``loss_pixel``, in [−1, 1]; with an image branch ``loss_image``, with
            a region head ``loss_region``. With ``decoder`` ``loss_pixel``, ``loss_region``,
            ``loss_segmentation`` and ``loss_auxiliary``, all at least 0. Each is the mean of two
            directions or views, and weighted.
        """
        self.check_views(inputs)
        boxes = view_boxes(data_samples, 2, like=inputs[0])  # Nx4
        if self.decoder is not None:
            return self.segmentation_losses(inputs, boxes)
        return self._pretraining_losses(inputs, boxes)

    def _pretraining_losses(self, inputs: List[Tensor], boxes: List[Tensor]) -> Dict[str, Tensor]:
        maps = [self.backbone(view) for view in inputs]
        # dense and image projections: NxCxHxW, NxC
        (z_1, v_1), (z_2, v_2) = (self.neck(m) for m in maps)
        p_1, p_2 = self.predictor(z_1), self.predictor(z_2)

        # the part of the image that both views show, location by location
        p_1, z_1 = (align_maps(m, *boxes) for m in (p_1, z_1.detach()))
        p_2, z_2 = (align_maps(m, *boxes[::-1]) for m in (p_2, z_2.detach()))
        weight = self._share_of_overlaps(*boxes)  # N
        losses = dict(
            loss_pixel=0.5 * (negative_cosine(p_1, z_2, weight) + negative_cosine(p_2, z_1, weight))
        )
        if self.image_predictor is not None:
            q_1, q_2 = self.image_predictor(v_1), self.image_predictor(v_2)
            loss_image = 0.5 * (negative_cosine(q_1, v_2) + negative_cosine(q_2, v_1))
            losses['loss_image'] = self.image_weight * loss_image
        if self.region_head is not None:
            f = [align_maps(m[-1], *pair) for m, pair in zip(maps, (boxes, boxes[::-1]))]
            loss_region = self.region_head.loss(*((m, self.region_neck(m)) for m in f))
            losses['loss_region'] = self.region_weight * loss_region

        images = (lambda: z_1.mean((2, 3))) if v_1 is None else (v_1, v_2)
        self.probe(global_=images, dense=(z_1, z_2))
        return losses

    @staticmethod
    @torch.no_grad()
    def _share_of_overlaps(box_1: Tensor, box_2: Tensor) -> Tensor:
        """Return each image's weight: 0 without overlap, else one over the images with overlap,
        of all processes; over the number of processes, since their gradients are averaged."""
        overlap = views_overlap(box_1, box_2).float()
        number = overlap.sum()
        all_reduce(number, 'mean')
        return overlap / number.clamp(min=1e-6)

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks that ``torch.compile`` compiles."""
        more = self.predictor, self.image_predictor, self.decoder
        pairs = self.auxiliary_neck, self.auxiliary_predictor, self.region_neck
        return [*super().trained_parts(), *(part for part in (*more, *pairs) if part is not None)]

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the predictors' learning rate, by SimSiam's rule."""
        return SimSiam.small_data_rules(facts)


def _check_parts(parts: Dict[str, Optional[dict]]) -> None:
    """Raise an InputError for parts that do not fit together."""
    given = {name for name, part in parts.items() if part is not None}
    if not given.issuperset(('neck', 'predictor')):
        raise InputError('DenseSiam needs a neck and a predictor')
    segments = 'decoder' in given
    pairs = ('auxiliary_neck', 'auxiliary_predictor'), ('region_neck', 'region_head')
    for one, other in pairs[: 1 if segments else 2]:
        if (one in given) != (other in given):
            raise InputError(f'DenseSiam needs both of {one} and {other}, or neither')
    for name in ('image_predictor', 'region_neck') if segments else pairs[0]:
        if name in given:
            raise InputError(f'DenseSiam with{"" if segments else "out"} decoder has no {name}')
