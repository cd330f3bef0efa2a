# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple, Union

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


@MODELS.register_module()
class FPN(BaseModule):
    """Make a pyramid of a backbone's maps, with a norm after each convolution.

    `Feature Pyramid Networks for Object Detection <https://arxiv.org/abs/1612.03144>`_, section 3,
    as CCOP (https://arxiv.org/abs/2111.13651) pretrains it: a 1×1 convolution of each map; from
    the top down, the sum of a level and of the level above, upsampled by the nearest location; a
    3×3 convolution. No convolution has a bias, and there is no activation. Parameter names are
    those of mmdet's ``FPN`` with ``norm_cfg=dict(type='BN')``, which computes the same.

    Args:
        in_channels (Sequence[int]): Channels of the maps, the largest map first.
        out_channels (int): Channels of the pyramid. Defaults to 256.
        norm_cfg (dict, optional): Defaults to ``dict(type='BN')``.
        init_cfg (dict or list[dict], optional): Defaults to a uniform distribution in
            ±√(3 / fan_in).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        norm_cfg: Optional[dict] = None,
        init_cfg: Optional[Union[dict, list]] = dict(  # noqa: B006 - never modified
            type='Caffe2Xavier', layer='Conv2d'
        ),
    ) -> None:
        super().__init__(init_cfg)
        if isinstance(in_channels, int):
            raise InputError(f'FPN: in_channels lists the channels of each map, got {in_channels}')
        check_counts(out_channels=out_channels)
        settings = dict(norm_cfg=norm_cfg or dict(type='BN'), act_cfg=None)
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, **settings) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, **settings) for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Return the pyramid.

        Args:
            maps (Sequence[Tensor]): L maps N×C×H×W, the largest first.

        Returns:
            tuple[Tensor]: L maps N×out_channels×H×W.
        """
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + interpolate(levels[i + 1], size=levels[i].shape[2:])
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, levels))
