# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmpretrain.models.necks import NonLinearNeck

from mmdense.registry import MODELS


@MODELS.register_module()
class SimCLRNeck(NonLinearNeck):
    """Project by SimCLR's head: linear layers without bias, each followed by BatchNorm.

    `A Simple Framework for Contrastive Learning of Visual Representations
    <https://arxiv.org/abs/2002.05709>`_, section 2, as in the published code: the last BatchNorm
    has a scale and no shift. The neck is mmpretrain's, with this shift kept at 0.

    Args:
        in_channels (int): Channels of the backbone's last map.
        hid_channels (int): Channels between the layers.
        out_channels (int): Channels of the projections.
        num_layers (int): Linear layers: 2 in SimCLR, 3 in SimCLR v2. Defaults to 2.
        kwargs: Further arguments of ``mmpretrain.NonLinearNeck``.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 128,
        num_layers: int = 2,
        **kwargs,
    ) -> None:
        kwargs.setdefault(
            'init_cfg',
            [
                dict(type='Normal', layer='Linear', std=0.01),
                dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1),
            ],
        )
        super().__init__(in_channels, hid_channels, out_channels, num_layers, **kwargs)
        getattr(self, f'bn{num_layers - 1}').bias.requires_grad_(False)
