# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Union

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


@MODELS.register_module()
class ProjectionMLP(BaseModule):
    """Project features by an MLP, on every location of a map or on vectors.

    All layers but the last are followed by a norm and an activation. With two
    layers, BN and ReLU it is PixPro's projector and predictor
    (https://arxiv.org/abs/2011.10043, section 3.4), with three, GELU and
    ``init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)``
    SlotCon's (https://arxiv.org/abs/2205.15288, section 4.1). With three layers,
    ``with_bias=False, with_last_bias=False, with_last_bn=True`` it is the projector of
    SimSiam (https://arxiv.org/abs/2011.10566, section 3), on a map that of DenseSiam.

    Args:
        in_channels (int): Channels of the input.
        hid_channels (int): Channels between layers. Defaults to 4096.
        out_channels (int): Channels of the output. Defaults to 256.
        num_layers (int): Defaults to 2.
        dense (bool): 1×1 convolutions, on N×C×H×W; False: linear layers, on
            M×C. Defaults to True.
        norm_cfg (dict): Defaults to ``dict(type='BN')``.
        act_cfg (dict): Defaults to ``dict(type='ReLU', inplace=True)``.
        with_bias (bool): Whether the layers before a norm and an activation
            have a bias, which a BatchNorm takes away. Defaults to True.
        with_last_bias (bool): Whether the last layer has a bias. Defaults to True.
        with_last_bn (bool): Whether a norm without scale and shift follows the
            last layer. Defaults to False.
        init_cfg (dict or list[dict], optional): None is PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 4096,
        out_channels: int = 256,
        num_layers: int = 2,
        dense: bool = True,
        norm_cfg: Optional[dict] = None,
        act_cfg: Optional[dict] = None,
        with_bias: bool = True,
        with_last_bias: bool = True,
        with_last_bn: bool = False,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        check_counts(
            in_channels=in_channels,
            hid_channels=hid_channels,
            out_channels=out_channels,
            num_layers=num_layers,
        )
        norm_cfg = dict(norm_cfg or dict(type='BN'))
        if not dense and norm_cfg['type'] == 'BN':
            norm_cfg['type'] = 'BN1d'
        act_cfg = act_cfg or dict(type='ReLU', inplace=True)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dense = dense
        layers = []
        for i in range(num_layers):
            last = i == num_layers - 1
            channels = out_channels if last else hid_channels
            bias = with_last_bias if last else with_bias
            layers.append(
                nn.Conv2d(in_channels, channels, 1, bias=bias)
                if dense
                else nn.Linear(in_channels, channels, bias=bias)
            )
            if not last:
                layers += [build_norm_layer(norm_cfg, channels)[1], build_activation_layer(act_cfg)]
            in_channels = channels
        if with_last_bn:
            layers.append(build_norm_layer(dict(norm_cfg, affine=False), channels)[1])
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Union[Tensor, Sequence[Tensor]]) -> Tensor:
        """Project; nothing is normalised.

        Args:
            x (Tensor | Sequence[Tensor]): N×in_channels×H×W (M×in_channels
                without ``dense``), or a backbone's maps, the last of which is
                taken.

        Returns:
            Tensor: N×out_channels×H×W (M×out_channels).
        """
        if isinstance(x, (list, tuple)):
            x = x[-1]
        if x.dim() != (4 if self.dense else 2) or x.size(1) != self.in_channels:
            wanted = 'N×C×H×W' if self.dense else 'M×C'
            raise InputError(
                f'ProjectionMLP has in_channels={self.in_channels}, but its input is '
                f'{tuple(x.shape)} ({wanted} is needed): set in_channels to the channels of what '
                'comes before, and let a backbone return feature maps'
            )
        return self.mlp(x)
