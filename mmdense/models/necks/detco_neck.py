# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Optional, Sequence, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


@MODELS.register_module()
class DetCoNeck(BaseModule):
    """Project each stage of the backbone with a global and a local head (DetCo).

    Global: average pool, FC, ReLU, FC. Local: the pooled features of an image's
    patches, concatenated, then FC, ReLU, FC. No weights are shared. `DetCo
    <https://arxiv.org/abs/2102.04803>`_ (ICCV 2021), section 3; the hidden
    width of the local heads is not published, ours is the stage's channels.

    Args:
        in_channels (Sequence[int]): Channels C_i of each stage that is used.
            :class:`mmdense.models.DetCo` fills them in.
        out_channels (int): Channels of the projections. Defaults to 128.
        grid (int): Patches along each side of an image, grid² in all. Defaults
            to 3.
        with_local (bool): Whether there are local heads. Defaults to True.
        init_cfg (dict or list[dict], optional): None is PyTorch's default, as
            in MoCo v2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 128,
        grid: int = 3,
        with_local: bool = True,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        if not isinstance(in_channels, (list, tuple)) or not in_channels:
            raise InputError(f'in_channels must list the channels by stage, got {in_channels!r}')
        for channels in in_channels:
            check_counts(in_channels=channels)
        check_counts(out_channels=out_channels, grid=grid)
        self.grid = grid
        self.heads_global = nn.ModuleList(_mlp(c, c, out_channels) for c in in_channels)
        self.heads_local = None
        if with_local:
            self.heads_local = nn.ModuleList(
                _mlp(grid**2 * c, c, out_channels) for c in in_channels
            )

    def forward(self, maps: Sequence[Tensor]) -> List[Tensor]:
        """Project images.

        Args:
            maps (Sequence[Tensor]): Of each stage, N×C_i×H_i×W_i.

        Returns:
            List[Tensor]: N×out_channels for each stage, not normalised.
        """
        return [head(_pool(x)) for head, x in zip(self.heads_global, maps)]

    def forward_local(self, maps: Sequence[Tensor]) -> List[Tensor]:
        """Project the patches of images, all of an image together.

        Args:
            maps (Sequence[Tensor]): Of each stage, (N·grid²)×C_i×h_i×w_i, image
                by image.

        Returns:
            List[Tensor]: N×out_channels for each stage, not normalised.
        """
        return [
            head(_pool(x).unflatten(0, (-1, self.grid**2)).flatten(1))
            for head, x in zip(self.heads_local, maps)
        ]


def _pool(x: Tensor) -> Tensor:
    """Pool N×C×H×W to N×C."""
    return x.mean((2, 3))


def _mlp(in_channels: int, hid_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, hid_channels),
        nn.ReLU(inplace=True),
        nn.Linear(hid_channels, out_channels),
    )
