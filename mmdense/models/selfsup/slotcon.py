# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.heads.slot_contrast_head import count_prototypes, slot_similarities
from mmdense.models.layers import MomentumEncoder, SemanticGrouping, TeacherCenter
from mmdense.models.losses import group_distillation
from mmdense.models.utils import align_maps, best_groups, view_boxes
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero, check_fractions
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, RunFacts, Setting, Views
from .grouping import GroupsPixels
from .momentum import MomentumSelfSupervisor, power_of_two


@MODELS.register_module()
class SlotCon(GroupsPixels, MomentumSelfSupervisor):
    """Group locations by prototypes, and contrast the groups (SlotCon).

    `Self-Supervised Visual Representation Learning with Semantic Grouping
    <https://arxiv.org/abs/2205.15288>`_ (NeurIPS 2022). The product is the
    TEACHER's backbone, with BatchNorm statistics of its own.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one
            is used.
        neck (dict): The projector, :class:`mmdense.models.necks.ProjectionMLP`.
        head (dict): :class:`mmdense.models.heads.SlotContrastHead`.
        num_prototypes (int): P. Defaults to 256, for COCO; ImageNet has 2048.
        student_temperature (float): Of the grouping loss. Defaults to 0.1.
        teacher_temperature (float): Of the grouping loss, and of the
            assignment of student and teacher. Defaults to 0.07.
        center_momentum (float): In [0, 1]. Defaults to 0.9.
        group_weight (float): Weight w in [0, 1] of the grouping loss; the slot
            loss gets 1 − w. Defaults to 0.5.
        momentum (float): Momentum of the teacher at the first step, one minus the paper's.
            Defaults to 0.01 (the paper's 0.99).
        end_momentum (float, optional): Momentum at the last step, along a cosine.
            Defaults to 0 (the paper's 1). None: constant.
        total_steps (int, optional): Steps of the complete run. None takes those of
            MMEngine's runner.
        kwargs: ``pretrained``, ``data_preprocessor`` and ``init_cfg`` of
            :class:`SelfSupervisor`.
    """

    product = 'encoder_k.module.backbone'
    group_name = ('prototype', 'prototypes')
    group_tensor = 'encoder_k.module.grouping.slot_embed.weight'
    group_part = 'encoder_k.module'
    best_prototypes = staticmethod(best_groups)
    views = Views(boxes=True)
    AUTHORS = (
        AuthorsFormat(
            source='SlotCon',
            parts=('encoder_k.', 'grouping_k.slot_embed.'),
            product='encoder_k.',
            names={
                'center': 'center.value',
                'predictor_slot.': 'head.predictor.',
                **{
                    f'{theirs}_{branch}.': f'{prefix}{ours}.'
                    for branch, prefix in (('q', ''), ('k', 'encoder_k.module.'))
                    for theirs, ours in (
                        ('encoder', 'backbone'),
                        ('projector', 'neck'),
                        ('grouping', 'grouping'),
                    )
                },
            },
        ),
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        num_prototypes: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        center_momentum: float = 0.9,
        group_weight: float = 0.5,
        momentum: float = 0.01,
        end_momentum: Optional[float] = 0.0,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('SlotCon needs a neck and a head')
        check_above_zero(student_temperature=student_temperature)
        check_fractions(group_weight=group_weight)
        self.grouping = SemanticGrouping(
            num_prototypes, self.neck.out_channels, teacher_temperature
        )
        self.encoder_k = MomentumEncoder(self.online_network(), momentum, end_momentum, total_steps)
        self.center = TeacherCenter(num_prototypes, center_momentum)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.group_weight = group_weight

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4.

        Returns:
            Dict[str, Tensor]: ``loss_group`` and ``loss_slot``, each the sum
            of two directions, weighted by w and 1 − w; their sum is the
            paper's loss (equation 7).
        """
        self.check_views(inputs)
        view_1, view_2 = inputs
        box_1, box_2 = view_boxes(data_samples, 2, like=view_1)  # Nx4

        # student: slots NxPxC, scores NxPxHxW
        online = self.online_network()
        slots_q1, scores_q1, z_1 = self._group(online, view_1)
        slots_q2, scores_q2, _ = self._group(online, view_2)

        # teacher
        with torch.no_grad():
            self.encoder_k.update(online)
            slots_k1, scores_k1, _ = self._group(self.encoder_k.module, view_1)
            slots_k2, scores_k2, _ = self._group(self.encoder_k.module, view_2)

        # the same place is assigned to the same prototypes
        loss_group = self._distil(
            align_maps(scores_q1, box_1, box_2), align_maps(scores_k2, box_2, box_1)
        ) + self._distil(align_maps(scores_q2, box_2, box_1), align_maps(scores_k1, box_1, box_2))
        self.center.update(scores_k1, scores_k2)

        # a slot that both views have is contrasted with all other slots
        loss_slot = self.head.total_loss(
            (slots_q1, slots_k2, scores_q1, scores_k2), (slots_q2, slots_k1, scores_q2, scores_k1)
        )
        self.probe(
            global_=lambda: z_1.mean((2, 3)),
            dense=z_1,
            prototypes=lambda: count_prototypes(scores_k2, scores_k1),
            **slot_similarities(slots_q1, slots_k2, scores_q1, scores_k2),
        )
        return dict(
            loss_group=self.group_weight * loss_group,
            loss_slot=(1 - self.group_weight) * loss_slot,
        )

    @property
    def num_groups(self) -> int:
        """Return P."""
        return self.grouping.slot_embed.num_embeddings

    def group_scores(self, inputs: Tensor) -> Tensor:
        """Return :meth:`teacher_scores`."""
        return self.teacher_scores(inputs)

    @torch.no_grad()
    def teacher_scores(self, inputs: Tensor) -> Tensor:
        """Return the teacher's cosines of locations and prototypes.

        Args:
            inputs (Tensor): N×3×H×W.

        Returns:
            Tensor: N×P×h×w.
        """
        teacher = self.encoder_k.module
        return teacher['grouping'].scores(teacher['neck'](teacher['backbone'](inputs)))

    @classmethod
    def small_data_rules(cls, facts: RunFacts) -> List[Setting]:
        """Return the number of prototypes; a checkpoint to start from decides it."""
        number = choose_prototypes(facts.images, facts.recipe.model.num_prototypes)
        reason = 'one for each eight images, 16 to 256'
        shape = facts.init_shapes.get('grouping.slot_embed.weight')
        if shape:
            number, reason = shape[0], f'as {facts.init} has them'
        return [Setting('prototypes', number, reason, {'model.num_prototypes': number})]

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Flatten the center, and add what the base adds."""
        if 'center.value' in tensors:
            tensors['center.value'] = tensors['center.value'].flatten()
        return super().complete_authors_state(tensors)

    def online_network(self) -> nn.ModuleDict:
        """Return backbone, neck and grouping by name."""
        return nn.ModuleDict(dict(backbone=self.backbone, neck=self.neck, grouping=self.grouping))

    @staticmethod
    def _group(encoder: nn.ModuleDict, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return slots N×P×C, scores N×P×H×W and projections N×C×H×W."""
        z = encoder['neck'](encoder['backbone'](x))
        return (*encoder['grouping'](z), z)

    def _distil(self, student: Tensor, teacher: Tensor) -> Tensor:
        return group_distillation(
            student,
            teacher,
            self.center.value,
            self.student_temperature,
            self.teacher_temperature,
        )


def choose_prototypes(images: int, usual: int) -> int:
    """Return the number of prototypes for a number of images.

    It is one for each eight images, from 16 to the recipe's ``usual``; 2048 from a million.
    """
    return 2048 if images >= 10**6 else min(max(power_of_two(images / 8), 16), usual)
