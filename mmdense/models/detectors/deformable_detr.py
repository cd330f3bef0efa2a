# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Deformable DETR that keeps the weights that fill it, on mmdet's class.

Import this module only to build one: it imports mmdet.
"""

from mmdet.models.detectors import DeformableDETR as _DeformableDETR
from mmengine.model import bias_init_with_prob
from torch import nn


class DeformableDETR(_DeformableDETR):
    """Detect as mmdet's ``DeformableDETR``, and keep the weights that ``init_cfg`` fills in.

    mmdet's ``init_weights()`` initializes the transformer after ``init_cfg`` has filled it.
    """

    keeps_filled_weights = True

    def _init_layers(self) -> None:
        super()._init_layers()
        nn.init.normal_(self.level_embed)  # not what the memory holds

    def init_weights(self) -> None:
        """Initialize as mmdet's class, or by a checkpoint alone; a class head that begins anew
        finds an object in a hundredth of the queries."""
        filled = self.init_cfg if isinstance(self.init_cfg, dict) else {}
        if not str(filled.get('type')).endswith('Pretrained'):
            super().init_weights()
            return
        super(_DeformableDETR, self).init_weights()
        if filled.get('part') == 'detector' and self.bbox_head.loss_cls.use_sigmoid:
            for branch in self.bbox_head.cls_branches:
                nn.init.constant_(branch.bias, bias_init_with_prob(0.01))
