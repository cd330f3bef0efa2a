# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.models.utils import in_float32, unit_vectors
from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts


@MODELS.register_module()
class StageNeck(BaseModule):
    """Project the map of a stage to unit vectors: a residual bottleneck, the mean, and an MLP.

    SCFS (https://arxiv.org/abs/2212.06486) has one for each of its three stages; layers and widths
    are those of its released code.

    Args:
        in_channels (int): C, channels of the map.
        mid_channels (int): Channels inside the bottleneck. Defaults to 256.
        hid_channels (int): Channels between the layers of the MLP. Defaults to 2048.
        out_channels (int): P. Defaults to 256.
        norm_cfg (dict, optional): The norms of maps and of vectors. Defaults to
            ``dict(type='BN')``.
        init_cfg (dict or list[dict], optional): None is PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int = 256,
        hid_channels: int = 2048,
        out_channels: int = 256,
        norm_cfg: Optional[dict] = None,
        init_cfg=None,
    ) -> None:
        super().__init__(init_cfg)
        check_counts(
            in_channels=in_channels,
            mid_channels=mid_channels,
            hid_channels=hid_channels,
            out_channels=out_channels,
        )
        of_maps = dict(norm_cfg or dict(type='BN'))
        of_vectors = dict(of_maps, type='BN1d') if of_maps['type'] == 'BN' else of_maps

        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = build_norm_layer(of_maps, mid_channels)[1]
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, 3, padding=1, bias=False)
        self.bn2 = build_norm_layer(of_maps, mid_channels)[1]
        self.conv3 = nn.Conv2d(mid_channels, in_channels, 1, bias=False)
        self.bn3 = build_norm_layer(of_maps, in_channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels),
            build_norm_layer(of_vectors, hid_channels)[1],
            nn.ReLU(inplace=True),
            nn.Linear(hid_channels, out_channels),
            build_norm_layer(of_vectors, out_channels)[1],
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Project maps.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            Tensor: Unit vectors N×P, float32.
        """
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.relu(x + self.bn3(self.conv3(y)))
        return _unit(self.mlp(y.mean((2, 3))))


_unit = in_float32(unit_vectors)
