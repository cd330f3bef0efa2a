# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from mmdense.models.utils import view_boxes
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError

from .base import Views

Outputs = List[Optional[Tuple[Tensor, ...]]]


class LocalContrast:
    """Add a local contrastive loss to an algorithm of two views (LC-loss).

    A mixin, before an algorithm that calls :meth:`SelfSupervisor.more_losses`. Its neck is
    :class:`mmdense.models.necks.GlobalLocalNeck`, so a momentum encoder averages the local
    projector too. A direction compares the online network's map of one view with the target's map
    of the other view. Which directions there are follows from the algorithm:

    - two with a momentum encoder that sees both views (BYOL);
    - one, from query to key, where each network sees one view (MoCo): the other direction would
      double the forward passes;
    - two without a momentum encoder (SimSiam): the target is the same projection without gradient.

    Args:
        local_head (dict): :class:`mmdense.models.heads.LocalContrastHead`.
        local_weight (float): Weight α of the sum of the directions, above 0. Defaults to 0.1, which
            is our choice.
        kwargs: Arguments of the algorithm.
    """

    views = Views(boxes=True)
    AUTHORS = ()

    def __init__(self, *args, local_head: dict, local_weight: float = 0.1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_above_zero(local_weight=local_weight)
        if not hasattr(self.neck, 'local_projector'):
            raise InputError(
                f'{type(self).__name__} needs neck=dict(type="GlobalLocalNeck", …), with a '
                f'projector and a local_projector, got {type(self.neck).__name__}'
            )
        self.local_head = MODELS.build(local_head)
        self.local_weight = local_weight

    def loss(
        self, inputs: List[Tensor], data_samples: Optional[list] = None, **kwargs
    ) -> Dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            inputs (List[Tensor]): Two views of every image, each N×3×H×W.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4.

        Returns:
            Dict[str, Tensor]: ``loss_global``, the algorithm's, and ``loss_local``, the sum of the
            directions, weighted.

        Raises:
            InputError: The algorithm does not call :meth:`more_losses`.
        """
        losses = super().loss(inputs, data_samples, **kwargs)
        if not {'loss', 'loss_local'} <= losses.keys():
            raise InputError(
                f'{type(self).__name__}: loss() of the algorithm behind LocalContrast must return '
                'dict(loss=…, **self.more_losses(outputs, targets, data_samples))'
            )
        return dict(loss_global=losses.pop('loss'), **losses)

    def more_losses(
        self, outputs: Outputs, targets: Outputs, data_samples: Optional[list]
    ) -> Dict[str, Tensor]:
        """Return the local loss.

        Args:
            outputs (list): For each view, N×C of the image and N×C'×H×W of its locations, by the
                online network; None where it does not see the view.
            targets (list): For each view, the same by the target network.
            data_samples (List[DataSample]): N, each with ``view_boxes``, 2×4.

        Returns:
            Dict[str, Tensor]: ``loss_local``.
        """
        directions = [
            (i, j) for i, j in ((0, 1), (1, 0)) if outputs[i] is not None and targets[j] is not None
        ]
        boxes = view_boxes(data_samples, 2, like=outputs[0][0])  # Nx4
        pairs = [(outputs[i][1], targets[j][1].detach(), boxes[i], boxes[j]) for i, j in directions]
        loss = sum(self.local_head.loss(*pair) for pair in pairs)
        self.probe(dense=pairs[0][0], **self.local_head.similarities(*pairs[0]))
        return dict(loss_local=self.local_weight * loss)

    def compile_parts(self, **options) -> None:
        """Compile the networks and both heads' losses in place.

        Args:
            options: Arguments of ``torch.compile``.
        """
        super().compile_parts(**options)
        self.local_head.loss = torch.compile(self.local_head.loss, **options)
