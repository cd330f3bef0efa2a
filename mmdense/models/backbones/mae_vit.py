# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple, Union

import torch
from mmpretrain.models import MAEViT as _MAEViT
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from mmdense.models.utils.position_embedding import sincos_positions
from mmdense.registry import MODELS


@MODELS.register_module()
class MAEViT(_MAEViT):
    """Encode the visible patches of images in training, and complete images otherwise.

    mmpretrain's ``MAEViT`` hides patches in every mode. This one hides them in train mode; in eval
    mode it returns feature maps of images of any size, with the positions resized (bicubic), as
    mmpretrain's ``VisionTransformer`` with the same weights does. The weights begin as in the code
    of MAE's authors, positions included: the first half of the channels is the column, where
    mmpretrain's is the row.

    Args:
        in_channels (int): Channels of the images. Defaults to 3.
        out_type (str): What is returned of complete images. Defaults to 'featmap', maps N×C×H×W.
        patch_cfg (dict, optional): Further arguments of the patch embedding.
        kwargs: Arguments of mmpretrain's ``MAEViT``: ``arch``, ``img_size`` of the training in
            pixels, ``patch_size``, ``mask_ratio`` (share of hidden patches, 0.75 by default),
            ``out_indices`` (blocks whose maps are returned) and others.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_type: str = 'featmap',
        patch_cfg: Optional[dict] = None,
        **kwargs,
    ) -> None:
        patch_cfg = dict(dict(in_channels=in_channels), **(patch_cfg or {}))
        super().__init__(out_type=out_type, patch_cfg=patch_cfg, **kwargs)

    @staticmethod
    def transfer_config(config: dict) -> dict:
        """Return the config of the network of mmpretrain that has the same weights and maps, for
        other packages: one that hides no patches."""
        kept = {key: value for key, value in config.items() if key != 'mask_ratio'}
        return dict(kept, type='mmpretrain.VisionTransformer', out_type='featmap')

    def init_weights(self) -> None:
        """Initialize as the authors' ``initialize_weights`` does, or from a checkpoint."""
        VisionTransformer.init_weights(self)
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        grid, channels = round(self.num_patches**0.5), self.embed_dims
        self.pos_embed.data.copy_(sincos_positions(grid, channels))
        nn.init.xavier_uniform_(self.patch_embed.projection.weight.data.view(channels, -1))
        nn.init.normal_(self.cls_token, std=0.02)
        initialize_linears(self.layers)

    def draw_noise(self, images: Tensor) -> Tensor:
        """Draw uniform noise N×L; of the L patches those with the lowest noise stay visible."""
        return torch.rand(len(images), self.num_patches, device=images.device)

    def forward(
        self, x: Tensor, mask: Optional[bool] = True
    ) -> Union[Tuple[Tensor, ...], Tuple[Tensor, Tensor, Tensor]]:
        """Encode images.

        Args:
            x (Tensor): Images, N×C×H×W; in training of ``img_size``.
            mask (bool, optional): Whether patches are hidden, in train mode; in eval mode they
                never are. Defaults to True.

        Returns:
            tuple[Tensor]: Where patches are hidden, N×(1 + kept)×D tokens (the class token
            first), the mask N×L (1: hidden), and N×L places of the patches in the shuffled order;
            otherwise a map of each of ``out_indices``, N×D×H'×W'.
        """
        if not (mask and self.training):
            return super().forward(x, mask=None)
        tokens = self.patch_embed(x)[0] + self.pos_embed[:, 1:]
        visible, hidden, places = hide_patches(tokens, self.draw_noise(x), self.mask_ratio)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        latent = torch.cat([cls_token, visible], dim=1)
        for layer in self.layers:
            latent = layer(latent)
        return self.norm1(latent), hidden, places


def hide_patches(tokens: Tensor, noise: Tensor, mask_ratio: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Keep the tokens with the lowest noise (paper, section 3; the authors' ``random_masking``).

    Args:
        tokens (Tensor): N×L×D.
        noise (Tensor): N×L.
        mask_ratio (float): Share of the tokens that are hidden, in [0, 1).

    Returns:
        tuple[Tensor, Tensor, Tensor]: The int(L·(1 − mask_ratio)) visible tokens in the order of
        their noise; the mask N×L in image order, 1 where hidden; for each patch its place in the
        order of the noise, N×L.
    """
    kept = int(tokens.size(1) * (1 - mask_ratio))
    order = noise.argsort(dim=1)
    places = order.argsort(dim=1)
    rows = order[:, :kept, None].expand(-1, -1, tokens.size(2))
    return tokens.gather(1, rows), (places >= kept).float(), places


def initialize_linears(module: nn.Module) -> None:
    """Initialize linear layers and LayerNorms as MAE's authors: Xavier-uniform, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
