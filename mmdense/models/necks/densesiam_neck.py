# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError

from .projection_mlp import ProjectionMLP


@MODELS.register_module()
class DenseSiamNeck(BaseModule):
    """Project every location of a map, and the mean of the map (DenseSiam).

    Both branches are SimSiam's projector (https://arxiv.org/abs/2011.10566, section 3): layers
    without bias, a norm after each, the last one without scale and shift. The dense one has 1×1
    convolutions. DenseSiam's paper (https://arxiv.org/abs/2203.11075) says that its projector is
    convolutional; the widths are ours.

    Args:
        in_channels (int): Channels of the backbone's map.
        hid_channels (int): Channels between layers. Defaults to 2048.
        out_channels (int): Channels of the projections. Defaults to 2048.
        num_layers (int): Layers of each branch. Defaults to 3.
        image_branch (bool): Whether the mean of the map is projected too, by layers of its own.
            Defaults to True.
        norm_cfg (dict, optional): Defaults to ``dict(type='BN')``.
        init_cfg (dict or list[dict], optional): None is PyTorch's default.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 2048,
        num_layers: int = 3,
        image_branch: bool = True,
        norm_cfg: Optional[dict] = None,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        arguments = dict(
            in_channels=in_channels,
            hid_channels=hid_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            norm_cfg=norm_cfg,
            with_bias=False,
            with_last_bias=False,
            with_last_bn=True,
        )
        self.out_channels = out_channels
        self.dense = ProjectionMLP(**arguments)
        self.image = ProjectionMLP(dense=False, **arguments) if image_branch else None

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Project; nothing is normalised to length 1.

        Args:
            maps (Sequence[Tensor]): A backbone's maps; the last one, N×in_channels×H×W, is used.

        Returns:
            tuple[Tensor, Tensor | None]: N×out_channels×H×W, and N×out_channels of the image
            branch.
        """
        dense = self.dense(maps)
        return dense, None if self.image is None else self.image(maps[-1].mean((2, 3)))


@MODELS.register_module()
class DenseSiamDecoder(BaseModule):
    """Add up a backbone's maps from the coarsest to the finest (DenseSiam's decoder).

    The decoder of PiCIE (https://arxiv.org/abs/2103.17070) and of DenseSiam's released code: a 1×1
    convolution for each map, and bilinear upsampling between them. There is no other convolution.

    Args:
        in_channels (Sequence[int]): Channels of the maps, from the finest to the coarsest.
        out_channels (int): C. Defaults to 128.
        init_cfg (dict or list[dict], optional): None is PyTorch's default.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 128,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        for channels in (*in_channels, out_channels):
            check_counts(channels=channels)
        self.out_channels = out_channels
        self.lateral_convs = nn.ModuleList(nn.Conv2d(n, out_channels, 1) for n in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sum at the size of the finest map.

        Args:
            maps (Sequence[Tensor]): As many as ``in_channels``, each N×C_i×H_i×W_i.

        Returns:
            Tensor: N×C×H×W.
        """
        wanted = [conv.in_channels for conv in self.lateral_convs]
        if [m.size(1) for m in maps] != wanted:
            raise InputError(
                f'DenseSiamDecoder has in_channels={wanted}, but the maps have '
                f'{[m.size(1) for m in maps]} channels: set in_channels, and out_indices of the '
                'backbone to all of its stages'
            )
        *finer, out = (conv(m) for conv, m in zip(self.lateral_convs, maps))
        for lateral in reversed(finer):
            out = lateral + interpolate(out, lateral.shape[-2:], mode='bilinear')
        return out
