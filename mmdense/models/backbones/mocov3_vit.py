# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, Tuple

from mmengine.model import BaseModule
from mmpretrain.models.selfsup import MoCoV3ViT as _MoCoV3ViT
from torch import Tensor, nn

from mmdense.registry import MODELS

from .class_token import ClassTokenInTraining


class ConvStem(BaseModule):
    """Embed patches of 16×16 pixels by five convolutions instead of one.

    `An Empirical Study of Training Self-Supervised Vision Transformers
    <https://arxiv.org/abs/2104.02057>`_, section 4.3, after `Early Convolutions Help Transformers
    See Better <https://arxiv.org/abs/2106.14881>`_: four 3×3 convolutions of stride 2, each with
    BatchNorm and ReLU, and a 1×1 convolution.

    Args:
        embed_dims (int): Channels C of the tokens, a multiple of 8. The convolutions have C/8, C/4,
            C/2 and C channels.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        layers, in_channels = [], 3
        for channels in (embed_dims // 8, embed_dims // 4, embed_dims // 2, embed_dims):
            layers += [
                nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = channels
        self.stem = nn.Sequential(*layers)
        self.projection = nn.Conv2d(embed_dims, embed_dims, 1)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tuple[int, int]]:
        """Return the tokens and the size of their grid.

        Args:
            x (Tensor): N×3×H×W.

        Returns:
            tuple: N×(H/16·W/16)×C, row by row; (H/16, W/16).
        """
        x = self.projection(self.stem(x))
        return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])


@MODELS.register_module()
class MoCoV3ViT(ClassTokenInTraining, _MoCoV3ViT):
    """Extend mmpretrain's ViT of MoCo v3 by feature maps and the convolutional stem.

    In training it returns the class token, which the projector takes. Otherwise it returns feature
    maps N×C×H/p×W/p, as every backbone that is evaluated, shown or transferred; an image may have
    any size, since the position embeddings are resized.

    Args:
        arch (str | dict): 'mocov3-small', 'base', or as for mmpretrain's ``VisionTransformer``.
        conv_stem (bool): Whether :class:`ConvStem` embeds the patches. The paper's then has 11
            blocks, not 12. Defaults to False.
        stop_grad_conv1 (bool): Whether the patch projection stays as it is initialized, which keeps
            the training stable (paper, section 4.1). Defaults to True.
        patch_size (int): Side p of a patch. Defaults to 16.
        kwargs: Further arguments of mmpretrain's ``MoCoV3ViT``.
    """

    # `--backbone vit-small` is the paper's ViT-S, of 12 heads (section 5), and not DeiT's, of 6.
    OWN_ARCHS = {'deit-small': 'mocov3-small'}

    def __init__(
        self,
        conv_stem: bool = False,
        stop_grad_conv1: bool = True,
        patch_size: int = 16,
        **kwargs,
    ) -> None:
        super().__init__(
            stop_grad_conv1=stop_grad_conv1 and not conv_stem, patch_size=patch_size, **kwargs
        )
        # fixed; here, since DistributedDataParallel looks before init_weights() is called
        self.pos_embed.requires_grad = False
        self.conv_stem = conv_stem
        if conv_stem:
            self.patch_embed = ConvStem(self.embed_dims)

    @staticmethod
    def transfer_config(config: dict) -> dict:
        """Return the config of the network of mmpretrain that has the same weights, and returns
        maps in training too, for other packages; one with a convolutional stem has none."""
        if config.get('conv_stem'):
            return config
        own = ('conv_stem', 'stop_grad_conv1', 'frozen_stages', 'norm_eval', 'out_type')
        kept = {key: value for key, value in config.items() if key not in own}
        if kept.get('arch') in ('mocov3-s', 'mocov3-small'):  # known to mmpretrain's class alone
            arch = dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536)
            kept['arch'] = arch
        return dict(kept, type='mmpretrain.VisionTransformer', out_type='featmap')

    def find_misfit(self, tensors: Dict[str, Tensor]) -> str:
        """Return why tensors of the right names and shapes are those of another network.

        The number of heads shows in no shape. Other ViT-S have 6, and learn their positions.

        Args:
            tensors (Dict[str, Tensor]): State of a backbone.

        Returns:
            str: One sentence; '' where the tensors are those of such a network.
        """
        own = self.arch_settings == self.arch_zoo['mocov3-small']
        if not own or not tensors['pos_embed'][0, 0].any():  # fixed positions: 0 for the class
            return ''
        return (
            "Its positions are learned: a ViT-S with 6 heads, and not MoCo v3's with 12. "
            "Set arch='deit-small' (--backbone visiontransformer-deit-small)."
        )

    def init_weights(self) -> None:
        """Initialize the weights as the published code does."""
        super().init_weights()
        filled = isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'
        if self.conv_stem and not filled:  # mmpretrain's initializes it as a patch projection
            self.patch_embed.projection.reset_parameters()

    def train(self, mode: bool = True) -> 'MoCoV3ViT':
        """Set the mode; unlike mmpretrain's it returns the module."""
        super().train(mode)
        return self
