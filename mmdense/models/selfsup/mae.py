# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from typing import Any, Dict, List, Optional, Tuple, Union

from mmpretrain.models import MAE as _MAE
from torch import Tensor, nn

from mmdense.models.backbones.mae_vit import MAEViT, initialize_linears
from mmdense.models.utils.authors_names import name_vit_layers
from mmdense.models.utils.float32 import in_float32
from mmdense.models.utils.position_embedding import sincos_positions
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

from .base import AuthorsFormat, SelfSupervisor, Views


@MODELS.register_module()
class MAE(SelfSupervisor, _MAE):
    """Predict the pixels of hidden patches from the visible ones (MAE).

    `Masked Autoencoders Are Scalable Vision Learners <https://arxiv.org/abs/2111.06377>`_ (CVPR
    2022). Decoder and loss are mmpretrain's, which compute what the authors' code computes; losses
    and weights are equal to 1e-5.

    Args:
        backbone (dict): The encoder: :class:`~mmdense.models.MAEViT`, or another backbone that
            hides patches. Without a prefix ``MAEViT`` is mmdense's in every default scope.
        neck (dict): The decoder, ``mmpretrain.MAEPretrainDecoder``. The sizes of encoder, patches
            and images need not be given: they follow from the backbone.
        head (dict): ``mmpretrain.MAEPretrainHead``; patches and channels likewise.
        kwargs: Arguments of :class:`SelfSupervisor`.

    Raises:
        InputError: The backbone hides no patches, or its images are not cut into whole patches.
    """

    views = Views(groups=(1,))
    AUTHORS = (
        AuthorsFormat(
            source='MAE',
            license='CC BY-NC 4.0',
            parts=('patch_embed.proj.', 'blocks.0.', 'decoder_embed.', 'decoder_blocks.0.'),
            product='',
            names={'decoder_': 'neck.decoder_', 'mask_token': 'neck.mask_token', '': 'backbone.'},
        ),
    )

    def __init__(self, backbone: dict, neck: dict, head: dict, **kwargs) -> None:
        if isinstance(backbone, dict) and backbone.get('type') == 'MAEViT':
            backbone = dict(backbone, type='mmdense.MAEViT')
        super().__init__(backbone=backbone, **kwargs)
        decoder, target = _read_sizes(self.backbone)
        self.neck = MODELS.build(_fill(neck, 'MAEPretrainDecoder', decoder))
        self.head = MODELS.build(_fill(head, 'MAEPretrainHead', target))

    def loss(
        self,
        inputs: Union[Tensor, List[Tensor]],
        data_samples: Optional[list] = None,
        **kwargs,
    ) -> Dict[str, Tensor]:
        """Compute the loss of one step (paper, section 3).

        Args:
            inputs (Tensor | List[Tensor]): Images, N×C×H×W; or a list of this one view.
            data_samples (list, optional): Not used.

        Returns:
            Dict[str, Tensor]: ``loss``, a scalar: the mean squared error of the hidden patches.
        """
        self.check_views(inputs)
        images = inputs if isinstance(inputs, Tensor) else inputs[0]
        # Nx(1 + visible)xD tokens, NxL mask (1: hidden), NxL places in the shuffled order
        latent, mask, places = self.backbone(images)
        predicted = self.neck(latent, places)  # NxLxP, P values of a patch
        loss = in_float32(self.head.loss)(predicted, images, mask)
        self.probe(global_=latent[:, 0], dense=latent[:, 1:].transpose(1, 2))
        return dict(loss=loss)

    def trained_maps(self, images: Tensor) -> Tuple[Tensor, ...]:
        """Return the pixels that the decoder predicts of N×C×H×W images."""
        latent, _, places = self.backbone(images)
        return (self.neck(latent, places),)

    def extract_feat(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Return the encoder's maps of N×C×H×W images of any size, in train mode too."""
        return self.backbone(inputs, mask=None)

    def init_weights(self) -> None:
        """Initialize as the authors' ``initialize_weights`` does, or from a checkpoint."""
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        initialize_linears(self.neck)
        positions = self.neck.decoder_pos_embed  # 1×(1 + L)×C
        grid = round((positions.size(1) - 1) ** 0.5)
        positions.data.copy_(sincos_positions(grid, positions.size(2)))

    def check_views(self, inputs: Union[Tensor, List[Tensor]]) -> None:
        """Check that there is one view, of the size that the fixed positions are for."""
        super().check_views(inputs)
        shape = tuple((inputs if isinstance(inputs, Tensor) else inputs[0]).shape[2:])
        size = tuple(getattr(self.backbone, 'img_size', shape))
        if shape != size:
            raise InputError(
                f'MAE trains on images of {size[0]}×{size[1]} px, got {shape[0]}×{shape[1]}: '
                'set scale of RandomResizedCrop, or model.backbone.img_size'
            )

    @classmethod
    def size_settings(cls, size: int) -> Dict[str, Any]:
        """Return the size of the images that the fixed positions are for."""
        return dict(img_size=size)

    @classmethod
    def complete_authors_state(cls, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Return an authors' tensors, whose layers have timm's names, with mmpretrain's names."""
        renamed = name_vit_layers(tensors)
        return {re.sub(r'^neck\.decoder_norm\.', 'neck.ln1.', k): v for k, v in renamed.items()}


def _fill(config: dict, kind: str, sizes: Dict[str, int]) -> dict:
    """Return the config of a part of mmpretrain's, with the sizes that it leaves out; without a
    prefix the part is mmpretrain's in every default scope."""
    if str(config['type']).split('.')[-1] != kind:
        return config
    return dict(sizes, **dict(config, type=f'mmpretrain.{kind}'))


def _read_sizes(backbone: nn.Module) -> Tuple[Dict[str, int], Dict[str, int]]:
    """Return the sizes of the decoder and of the head; of an encoder of another kind none.

    Raises:
        InputError: The backbone hides no patches, or its images are not cut into whole patches.
    """
    if not hasattr(backbone, 'mask_ratio'):
        raise InputError(
            f'MAE hides patches from its encoder, and a {type(backbone).__name__} cannot leave '
            'parts of an image out: take a vision transformer (vit-small, vit-base, vit-large, '
            'vit-huge)'
        )
    if not isinstance(backbone, MAEViT):
        return {}, {}
    projection, (height, width) = backbone.patch_embed.projection, backbone.img_size
    patch, channels = projection.kernel_size[0], projection.in_channels
    if height != width or height % patch:
        raise InputError(
            f'MAE needs square images of whole patches: {height}×{width} px have no whole patches '
            f'of {patch} px'
        )
    decoder = dict(num_patches=backbone.num_patches, embed_dim=backbone.embed_dims)
    return (
        dict(decoder, patch_size=patch, in_chans=channels),
        dict(patch_size=patch, in_channels=channels),
    )
