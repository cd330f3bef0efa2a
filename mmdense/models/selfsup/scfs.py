# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.layers import TeacherCenter
from mmdense.models.losses import group_distillation
from mmdense.models.utils import map_channels, search_features
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .dino import DINO, authors_formats


@MODELS.register_module()
class SCFS(DINO):
    """Distil local crops from the places of a global crop that look like them (SCFS).

    `Semantics-Consistent Feature Search for Self-Supervised Visual Representation Learning
    <https://arxiv.org/abs/2212.06486>`_ (ICCV 2023): DINO, and the same loss at stages of the
    backbone, where the feature of a local crop is searched in the teacher's map of the first global
    crop.

    Args:
        backbone (dict): Any backbone that returns feature maps; each one is a stage. The last one
            is used for the loss of complete crops.
        neck (dict): :class:`mmdense.models.necks.DINONeck`.
        stage_neck (dict): :class:`mmdense.models.necks.StageNeck`; each stage gets one, with the
            ``in_channels`` of its map.
        base_momentum (float): See :class:`DINO`. Defaults to 0.004.
        total_steps (int, optional): See :class:`DINO`.
        center_momentum (float): See :class:`DINO`. Defaults to 0.9.
        kwargs: Further arguments of :class:`DINO`.
    """

    search_tensor = 'stage_necks.0.conv1.weight'  # what a checkpoint with it has
    AUTHORS = authors_formats(
        'SCFS',
        {
            'backbone.model.': 'backbone.',
            'head.': 'neck.',
            **{f'layer{i + 2}_head.': f'stage_necks.{i}.' for i in range(3)},
        },
        {
            'dino_loss_fn.center': 'center.value',
            **{f'dino_loss_l{i + 2}_fn.center': f'stage_centers.{i}.value' for i in range(3)},
        },
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        stage_neck: dict,
        base_momentum: float = 0.004,
        total_steps: Optional[int] = None,
        center_momentum: float = 0.9,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, center_momentum=center_momentum, **kwargs)
        if len(self.views.groups) != 2 or self.views.groups[0] < 2:
            raise InputError(
                'SCFS takes two or more global crops, and local crops of one size: num_crops must '
                f'be as (2, 8), got {self.views.groups}'
            )
        necks = [
            MODELS.build(dict(stage_neck, in_channels=channels))
            for channels in map_channels(self.backbone)
        ]
        self.stage_necks = self.in_format(nn.ModuleList(necks))
        self.stage_centers = nn.ModuleList(
            TeacherCenter(part.out_channels, center_momentum) for part in self.stage_necks
        )
        self.encoder_k = self.build_teacher(base_momentum, total_steps)  # with these necks

    def online_network(self) -> nn.ModuleDict:
        """Return backbone, neck and the necks of the stages by name."""
        network = super().online_network()
        if hasattr(self, 'stage_necks'):
            network['stage_necks'] = self.stage_necks
        return network

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): V crops of every image, each N×3×H×W, the global ones first.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss_image``, DINO's, and ``loss_stage_1``, … of each stage,
            scalars from 0; chance is ln P.
        """
        self.check_views(inputs)
        student, teacher = self.encode(inputs)
        losses = dict(loss_image=self.compare_images(student, teacher))
        for i, maps in enumerate(zip(*student, teacher)):
            losses[f'loss_stage_{i + 1}'] = self.compare_stage(i, *maps)
        return losses

    def compare_stage(self, i: int, crops: Tensor, local: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of a stage, and update its center.

        Args:
            i (int): Number of the stage, from 0.
            crops (Tensor): The student's map of the G global crops, (GN)×C×H×W.
            local (Tensor): The student's map of the L local crops, (LN)×C×h×w.
            teacher (Tensor): The teacher's map of the global crops, (GN)×C×H×W.
        """
        globals_, number = self.views.groups[0], len(teacher) // self.views.groups[0]
        s, s_local = self.stage_necks[i](crops), self.stage_necks[i](local)
        with torch.no_grad():
            neck = self.encoder_k.module['stage_necks'][i]
            t = neck(teacher)  # (GN)xP
            found, attention = search_features(local, teacher[:number])  # in the first global crop
            t_found = neck(found)  # (LN)xP

        s, t = (x.unflatten(0, (globals_, -1)) for x in (s, t))  # GxNxP
        temperatures = self.student_temperature, self.current_temperature()
        center = self.stage_centers[i]
        loss_global = self.distil(s, t, center.value, *temperatures)
        loss_local = group_distillation(s_local, t_found, None, *temperatures)
        center.update(*t)
        self.probe(**{f'stage_{i + 1}': s[1]})
        return (loss_global + loss_local) / 2

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the projections of all stages, and the last map."""
        maps = self.backbone(images)
        return (*(part(x) for part, x in zip(self.stage_necks, maps)), maps[-1])

    def trained_parts(self) -> List[nn.Module]:
        """Return the networks of student and teacher, with the necks of the stages one by one."""
        parts = []
        for part in super().trained_parts():
            parts += part if isinstance(part, nn.ModuleList) else [part]
        return parts

    @torch.no_grad()
    def search(self, crops: Tensor, images: Tensor) -> List[Tensor]:
        """Return where features of local crops are found, for `mmdense show`.

        Args:
            crops (Tensor): (LN)×3×h×w, of all images crop 0, then crop 1, and so on.
            images (Tensor): N×3×H×W.

        Returns:
            List[Tensor]: The cosines of each stage, L×N×h'×w'.
        """
        pairs = zip(self.backbone(crops), self.get_product()(images))
        return [search_features(*pair)[1] for pair in pairs]
