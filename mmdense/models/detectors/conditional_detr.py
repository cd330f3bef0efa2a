# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Conditional DETR that keeps the weights that fill it, on mmdet's class.

Import this module only to build one: it imports mmdet.
"""

from mmdet.models.detectors import ConditionalDETR as _ConditionalDETR
from mmdet.models.losses import FocalLoss
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .detr import DETR


class OneHotFocalLoss(FocalLoss):
    """Compute mmdet's ``FocalLoss`` without mmcv's compiled operator, on a GPU too."""

    def forward(self, pred: Tensor, target: Tensor, *args, **kwargs) -> Tensor:
        """Return the loss; arguments as in mmdet's class, ``target`` holds M labels."""
        classes = pred.size(1)  # the label of no object is one more
        return super().forward(pred, one_hot(target, classes + 1)[:, :classes], *args, **kwargs)


class ConditionalDETR(_ConditionalDETR, DETR):
    """Detect as mmdet's ``ConditionalDETR``, initialized as the authors' code.

    There the last layer of the boxes is 0 at first, so that each query begins at its reference
    point; mmdet leaves it random. No compiled operator of mmcv is needed.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        loss = self.bbox_head.loss_cls
        if isinstance(loss, FocalLoss):
            names = ('use_sigmoid', 'gamma', 'alpha', 'reduction', 'loss_weight', 'activated')
            self.bbox_head.loss_cls = OneHotFocalLoss(**{k: getattr(loss, k) for k in names})

    def init_weights(self) -> None:
        """Initialize as the authors' code, or by a checkpoint alone; a class head that begins anew
        finds an object in a hundredth of the queries."""
        super().init_weights()
        filled = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if not str(filled.get('type')).endswith('Pretrained'):
            nn.init.zeros_(self.bbox_head.fc_reg.weight)
            nn.init.zeros_(self.bbox_head.fc_reg.bias)
        elif filled.get('part') == 'detector':
            nn.init.constant_(self.bbox_head.fc_cls.bias, bias_init_with_prob(0.01))
