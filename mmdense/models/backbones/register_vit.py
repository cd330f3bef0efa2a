# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts


@MODELS.register_module()
class RegisterViT(VisionTransformer):
    """Encode images by a vision transformer with register tokens.

    `Vision Transformers Need Registers <https://arxiv.org/abs/2309.16588>`_ (ICLR 2024):
    mmpretrain's vision transformer, with tokens without a position between the class token and the
    patches. DINOv2 has models of this kind. The maps are without them.

    Args:
        num_registers (int): Number of register tokens. Defaults to 4.
        kwargs: Arguments of mmpretrain's ``VisionTransformer``.
    """

    def __init__(self, num_registers: int = 4, **kwargs) -> None:
        check_counts(num_registers=num_registers)
        super().__init__(**kwargs)
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, self.embed_dims))
        self.num_extra_tokens = 1 + num_registers

    def init_weights(self) -> None:
        """Initialize as mmpretrain's class does; the register tokens are as small as in DINOv2."""
        super().init_weights()
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            nn.init.normal_(self.register_tokens, std=1e-6)

    def _prepare_pos_embed(self, state_dict, prefix, *args, **kwargs) -> None:
        """Leave a file's positions as they are: SelfSupPretrained resizes them."""

    def forward(self, x: Tensor) -> tuple:
        """Return what ``out_type`` names, of each of ``out_indices``, for N×C×H×W images."""
        x, grid = self.patch_embed(x)
        number = len(x)
        x = torch.cat([self.cls_token.expand(number, -1, -1), x], dim=1)
        x = x + resize_pos_embed(
            self.pos_embed, self.patch_resolution, grid, self.interpolate_mode, num_extra_tokens=1
        )
        x = torch.cat([x[:, :1], self.register_tokens.expand(number, -1, -1), x[:, 1:]], dim=1)
        x = self.pre_norm(self.drop_after_pos(x))
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == len(self.layers) - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outputs.append(self._format_output(x, grid))
        return tuple(outputs)
