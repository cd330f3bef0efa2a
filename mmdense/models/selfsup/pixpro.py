# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mmdense.models.layers import MomentumEncoder
from mmdense.models.utils import view_boxes
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, Views
from .momentum import MomentumSelfSupervisor


@MODELS.register_module()
class PixPro(MomentumSelfSupervisor):
    """Compare the locations of two views that show the same place (PixPro, PixContrast).

    `Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised
    Visual Representation Learning <https://arxiv.org/abs/2011.10043>`_ (CVPR
    2021). With :class:`mmdense.models.heads.PixProHead` it is PixPro, with
    :class:`mmdense.models.heads.PixContrastHead` PixContrast.

    Args:
        backbone (dict): Any backbone that returns feature maps; the last one
            is used.
        neck (dict): The projector, :class:`mmdense.models.necks.ProjectionMLP`.
        head (dict): One of the two heads above.
        instance_neck (dict, optional): A projector of its own for the instance
            branch. None is without that branch.
        instance_head (dict, optional): With ``instance_neck``:
            :class:`mmdense.models.heads.InstanceConsistencyHead`.
        instance_weight (float): Weight of the instance branch, above 0; 1 in
            the paper. Defaults to 1.
        momentum (float): Momentum of the momentum encoder at the first step, one minus the
            paper's. Defaults to 0.01 (the paper's 0.99).
        end_momentum (float, optional): Momentum at the last step, along a cosine.
            Defaults to 0 (the paper's 1). None: constant.
        total_steps (int, optional): Steps of the complete run. None takes those of
            MMEngine's runner.
        kwargs: ``pretrained``, ``data_preprocessor`` and ``init_cfg`` of
            :class:`SelfSupervisor`.
    """

    views = Views(boxes=True)
    AUTHORS = (
        AuthorsFormat(
            source='PixPro',
            parts=('encoder.', 'encoder_k.', 'projector.linear1.'),
            product='encoder.',
            names={
                'encoder.': 'backbone.',
                'encoder_k.': 'encoder_k.module.backbone.',
                'value_transform.weight': 'head.value_transform.weight',
                'value_transform.bias': 'head.value_transform.bias',
                **{
                    f'{theirs}.{layer}.': f'{ours}.mlp.{i}.'
                    for theirs, ours in (
                        ('projector', 'neck'),
                        ('projector_k', 'encoder_k.module.neck'),
                        ('projector_instance', 'instance_neck'),
                        ('projector_instance_k', 'encoder_k.module.instance_neck'),
                        ('predictor', 'instance_head.predictor'),
                        ('value_transform', 'head.value_transform'),
                    )
                    for layer, i in (('linear1', 0), ('bn1', 1), ('linear2', 3))
                },
            },
        ),
    )

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        instance_neck: Optional[dict] = None,
        instance_head: Optional[dict] = None,
        instance_weight: float = 1.0,
        momentum: float = 0.01,
        end_momentum: Optional[float] = 0.0,
        total_steps: Optional[int] = None,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        if neck is None or head is None:
            raise InputError('PixPro needs a neck and a head')
        if (instance_neck is None) != (instance_head is None):
            raise InputError('PixPro needs both of instance_neck and instance_head, or neither')
        check_above_zero(instance_weight=instance_weight)
        self.instance_neck = instance_neck and MODELS.build(instance_neck)
        self.instance_head = instance_head and MODELS.build(instance_head)
        self.instance_weight = instance_weight
        self.encoder_k = MomentumEncoder(self.online_network(), momentum, end_momentum, total_steps)

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step (paper, section 3).

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4.

        Returns:
            Dict[str, Tensor]: ``loss_pixel``, and with the instance branch
            ``loss_instance``, weighted; both are the sum of two directions.
        """
        self.check_views(inputs)
        view_1, view_2 = inputs
        box_1, box_2 = view_boxes(data_samples, 2, like=view_1)  # Nx4

        # online network: projections NxCxHxW, and of the instance branch
        online = self.online_network()
        z_1, instance_z_1 = self._project(online, view_1)
        z_2, instance_z_2 = self._project(online, view_2)

        # momentum encoder
        with torch.no_grad():
            self.encoder_k.update(online)
            t_1, instance_t_1 = self._project(self.encoder_k.module, view_1)
            t_2, instance_t_2 = self._project(self.encoder_k.module, view_2)

        loss_1 = self.head.loss(z_1, t_2, box_1, box_2)
        loss_2 = self.head.loss(z_2, t_1, box_2, box_1)
        losses = dict(loss_pixel=loss_1 + loss_2)

        if self.instance_neck is not None:
            loss_1 = self.instance_head.loss(instance_z_1, instance_t_2)
            loss_2 = self.instance_head.loss(instance_z_2, instance_t_1)
            losses['loss_instance'] = self.instance_weight * (loss_1 + loss_2)

        self.probe(
            global_=lambda: z_1.mean((2, 3)),
            dense=z_1,
            **self.head.similarities(z_1, t_2, box_1, box_2),
        )
        return losses

    def online_network(self) -> nn.ModuleDict:
        """Return backbone, neck and instance neck by name."""
        parts = dict(backbone=self.backbone, neck=self.neck, instance_neck=self.instance_neck)
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    @staticmethod
    def _project(encoder: nn.ModuleDict, x: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        maps = encoder['backbone'](x)
        instance = encoder['instance_neck'](maps) if 'instance_neck' in encoder else None
        return encoder['neck'](maps), instance
