# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor

from mmdense.registry import MODELS


@MODELS.register_module()
class GlobalLocalNeck(BaseModule):
    """Project an image by an algorithm's own projector, and every location by another one.

    Args:
        in_channels (int): Channels of the backbone's map.
        projector (dict): The algorithm's own neck, such as ``mmpretrain.NonLinearNeck``, without
            ``in_channels``. It takes the backbone's maps and returns a tuple.
        local_projector (dict): :class:`mmdense.models.necks.ProjectionMLP` without
            ``in_channels``.
        init_cfg (dict or list[dict], optional): As everywhere.
    """

    def __init__(
        self,
        in_channels: int,
        projector: dict,
        local_projector: dict,
        init_cfg: Optional[Union[dict, list]] = None,
    ) -> None:
        super().__init__(init_cfg)
        # a plain name is mmpretrain's, as in the heads
        self.projector = MMPRETRAIN_MODELS.build(dict(projector, in_channels=in_channels))
        self.local_projector = MODELS.build(dict(local_projector, in_channels=in_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
        """Project; nothing is normalised to length 1.

        Args:
            maps (Sequence[Tensor]): A backbone's maps; the last one, N×in_channels×H×W, is used.

        Returns:
            tuple[Tensor, Tensor]: N×C of the image, and N×C'×H×W of its locations.
        """
        (image,) = self.projector(maps)
        return image, self.local_projector(maps)
