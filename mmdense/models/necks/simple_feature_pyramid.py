# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Sequence, Tuple

from mmengine.model import BaseModule
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from mmdense.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Make a pyramid of the last map of a plain vision transformer (ViTDet, arXiv 2203.16527,
    section 3).

    The map of stride 16 becomes maps of strides 4, 8, 16 and 32 by transposed convolutions and a
    max pooling; then a convolution of 1×1 and one of 3×3, each with a LayerNorm over the channels.
    A fifth map of stride 64 is the subsampled fourth.

    Args:
        in_channels (int): D, channels of the map.
        out_channels (int): C, channels of the pyramid. Defaults to 256.
        init_cfg (dict, optional): Initialization of the parameters.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, init_cfg=None) -> None:
        super().__init__(init_cfg)
        half, quarter = in_channels // 2, in_channels // 4
        resizers = (
            (
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2),
            ),
            (nn.ConvTranspose2d(in_channels, half, 2, stride=2),),
            (),
            (nn.MaxPool2d(2),),
        )
        widths = (quarter, half, in_channels, in_channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *resizer,
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for resizer, width in zip(resizers, widths)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Return five maps.

        Args:
            maps (Sequence[Tensor]): Maps of a backbone; the last one, N×D×H×W, is used.

        Returns:
            tuple[Tensor]: N×C×4H×4W, N×C×2H×2W, N×C×H×W, N×C×H/2×W/2 and N×C×H/4×W/4.
        """
        pyramid = [level(maps[-1]) for level in self.levels]
        return (*pyramid, max_pool2d(pyramid[-1], kernel_size=1, stride=2))
