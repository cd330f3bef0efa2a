# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.registry import MODELS


@MODELS.register_module()
class ResLayerExtraNorm(BaseModule):
    """Add a norm after mmdet's ``ResLayer``, for ``roi_head.shared_head``.

    A C4 detector runs the last stage of its ResNet on regions, in the RoI head.
    Where all BatchNorm is trained, one more norm follows that stage (MoCo,
    https://arxiv.org/abs/1911.05722, appendix on detection backbones, and all
    that compare with it). No pretrained file has that norm: the stage is a
    sub-module of its own, which ``init_cfg`` fills strictly.

    mmdet is imported when one is built, not before. (mmpretrain's class of the
    same name puts the norm into the stage itself, where a strict initialiser
    misses it in the file.)

    Args:
        norm_cfg (dict): Of the stage and of the norm after it.
        init_cfg (dict or list[dict], optional): Of the stage alone.
        kwargs: As of ``mmdet.ResLayer``.
    """

    def __init__(self, norm_cfg: dict, init_cfg: Optional[dict] = None, **kwargs) -> None:
        super().__init__()
        self.res_layer = MODELS.build(
            dict(kwargs, type='mmdet.ResLayer', norm_cfg=norm_cfg, init_cfg=init_cfg)
        )
        convs = [m for m in self.res_layer.modules() if isinstance(m, nn.Conv2d)]
        self.norm = build_norm_layer(norm_cfg, convs[-1].out_channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage, then the norm.

        Args:
            x (Tensor): Features of M regions, M×C_in×H×W.

        Returns:
            Tensor: M×C_out×H'×W', 2048 channels and half the side for ResNet-50.
        """
        return self.norm(self.res_layer(x))
