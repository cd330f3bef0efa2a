# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict

from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from mmdense.registry import MODELS

from .class_token import ClassTokenInTraining


@MODELS.register_module()
class DINOViT(ClassTokenInTraining, VisionTransformer):
    """Encode crops of any size by their class token in training, and by maps otherwise.

    The vision transformer of DINO (https://arxiv.org/abs/2104.14294): mmpretrain's, initialized as
    the authors initialize it. The positions are resized (bicubic) for each size of the crops.

    Args:
        arch (str | dict): 'deit-small' (the paper's ViT-S), 'base', or as for mmpretrain's
            ``VisionTransformer``.
        kwargs: Further arguments of mmpretrain's class, such as ``img_size`` of the largest crops,
            ``patch_size`` and ``drop_path_rate``, of the student alone.
    """

    @staticmethod
    def transfer_config(config: dict) -> dict:
        """Return the config of the network of mmpretrain that has the same weights, and returns
        maps in training too, for other packages."""
        own = ('frozen_stages', 'out_type', 'drop_path_rate')
        kept = {key: value for key, value in config.items() if key not in own}
        return dict(kept, type='mmpretrain.VisionTransformer', out_type='featmap')

    def find_misfit(self, tensors: Dict[str, Tensor]) -> str:
        """Return why tensors of the right names and shapes are those of another network.

        The number of heads shows in no shape. MoCo v3's ViT-S has 12, and fixed positions.

        Args:
            tensors (Dict[str, Tensor]): State of a backbone.

        Returns:
            str: One sentence; '' where the tensors are those of such a network.
        """
        own = self.arch_settings == self.arch_zoo['deit-small']
        if not own or tensors['pos_embed'][0, 0].any():  # fixed positions: 0 for the class
            return ''
        return "Its positions are fixed: MoCo v3's ViT-S with 12 heads, and not one with 6."

    def init_weights(self) -> None:
        """Initialize the weights as the published code does, or from a checkpoint."""
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.patch_embed.projection.reset_parameters()
