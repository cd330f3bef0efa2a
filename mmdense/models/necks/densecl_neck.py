# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


@MODELS.register_module()
class DenseCLNeck(BaseModule):
    """Project maps globally and densely, in parallel (the two heads of DenseCL).

    Global: average pool, FC, ReLU, FC. Dense: 1×1 convolution, ReLU, 1×1
    convolution on every location. From `Dense Contrastive Learning for
    Self-Supervised Visual Pre-Training
    <https://arxiv.org/abs/2011.09157>`_, section 3.2. Parameter names are
    mmpretrain's and the authors'.

    Args:
        in_channels (int): Channels of the backbone's last map.
        hid_channels (int): Channels between the two layers.
        out_channels (int): Channels of the projections.
        num_grid (int, optional): Side of the grid that maps are pooled to
            before the dense head. None keeps the backbone's grid.
        init_cfg (dict or list[dict], optional): Defaults to Kaiming-normal
            (fan_in), bias 0, for the FCs, as in the authors' code; the 1×1
            convolutions keep PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 128,
        num_grid: Optional[int] = None,
        init_cfg: Optional[Union[dict, list]] = dict(  # noqa: B006 - never modified
            type='Kaiming', layer='Linear', mode='fan_in', distribution='normal'
        ),
    ) -> None:
        super().__init__(init_cfg)
        check_counts(in_channels=in_channels, hid_channels=hid_channels, out_channels=out_channels)
        if num_grid is not None:
            check_counts(num_grid=num_grid)
        self.in_channels = in_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hid_channels, out_channels),
        )
        self.pool = nn.AdaptiveAvgPool2d(num_grid) if num_grid else nn.Identity()
        self.mlp2 = nn.Sequential(
            nn.Conv2d(in_channels, hid_channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hid_channels, out_channels, 1),
        )

    def forward(self, x: Tuple[Tensor, ...]) -> Tuple[Tensor, Tensor, Tensor]:
        """Project the last of the backbone's maps; nothing is normalised.

        Args:
            x (Tuple[Tensor]): Maps of the backbone; the last is
                N×in_channels×H×W.

        Returns:
            Tuple[Tensor, Tensor, Tensor]: The global vector N×C, the dense
            vectors N×C×S (S locations, flattened), and their mean N×C, which is
            what enters the dense queue (section 3.3).
        """
        x = x[-1]
        if x.dim() != 4 or x.size(1) != self.in_channels:
            raise InputError(
                f'DenseCLNeck has in_channels={self.in_channels}, but the backbone gives '
                f'{tuple(x.shape)} (N×C×H×W is needed): set in_channels to its channels, and let '
                'it return feature maps'
            )
        vector = self.mlp(self.avgpool(x).flatten(1))
        dense = self.mlp2(self.pool(x)).flatten(2)
        return vector, dense, dense.mean(2)
