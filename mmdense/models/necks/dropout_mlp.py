# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_below_one, check_counts
from mmdense.utils.errors import InputError


@MODELS.register_module()
class DropoutMLP(BaseModule):
    """Project vectors by a linear layer, dropout, ReLU and a second linear layer.

    It is the projector of CCOP (https://arxiv.org/abs/2111.13651), by its released code: of images
    and of regions.

    Args:
        in_channels (int): Channels of the input.
        hid_channels (int): Channels between the layers. Defaults to 2048.
        out_channels (int): Channels of the output. Defaults to 128.
        drop_rate (float): Share of the hidden values that are set to 0 in train mode, in [0, 1).
            Defaults to 0.1.
        init_cfg (dict or list[dict], optional): Defaults to a normal distribution of deviation
            0.01, bias 0.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 128,
        drop_rate: float = 0.1,
        init_cfg: Optional[Union[dict, list]] = dict(  # noqa: B006 - never modified
            type='Normal', layer='Linear', std=0.01
        ),
    ) -> None:
        super().__init__(init_cfg)
        check_counts(in_channels=in_channels, hid_channels=hid_channels, out_channels=out_channels)
        check_below_one(drop_rate=drop_rate)
        self.in_channels = in_channels
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels),
            nn.Dropout(drop_rate),
            nn.ReLU(inplace=True),
            nn.Linear(hid_channels, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Project; nothing is normalised.

        Args:
            x (Tensor): M×in_channels; M may be 0.

        Returns:
            Tensor: M×out_channels.
        """
        if x.dim() != 2 or x.size(1) != self.in_channels:
            raise InputError(
                f'DropoutMLP has in_channels={self.in_channels}, but its input is '
                f'{tuple(x.shape)} (M×C is needed)'
            )
        return self.mlp(x)
