# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from contextlib import nullcontext
from math import ceil
from typing import ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm

from mmdense.models.utils import input_channels, map_channels
from mmdense.registry import MODELS, WEIGHT_INITIALIZERS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError
from mmdense.utils.imagenet import IMAGENET_PIXELS

USUAL_SIZE = 224


class FrozenTeacher(BaseModule):
    """Return the features of a network that is not trained, for distillation.

    Evaluation mode whatever the mode of the model; no gradients. The weights of a file are filled
    by ``init_weights()``, and are in no checkpoint of a run: they stay in their file. Random
    weights, without a file, are saved as all others.

    Args:
        backbone (dict, optional): The network. None: the file's tensors show it, and building
            reads the file; with it building reads none.
        checkpoint (str, optional): Path or URL of any file that
            :class:`~mmdense.checkpoints.SelfSupPretrained` takes. None: random weights.
        prefix (str, optional): As for :class:`~mmdense.checkpoints.SelfSupPretrained`.
        size (int, optional): Side that views are resized to, in pixels. None: a vision
            transformer's own size, at most the larger of 224 px and the view, in whole patches;
            for other networks the view's.
        mean (Sequence[float], optional): Mean of the teacher's pixels, in 0..255. None: those that
            the network is known for, else ImageNet's, as for ``std`` and ``to_rgb``.
        std (Sequence[float], optional): Standard deviation, likewise.
        to_rgb (bool, optional): Whether the teacher takes RGB.
        half (bool): Whether the forward pass is in half precision on a GPU. Defaults to True.
        view_pixels (dict, optional): ``mean``, ``std`` and ``to_rgb`` of the views. Defaults to
            ImageNet's.

    Attributes:
        channels (Tuple[int, ...]): Channels of each map.

    Raises:
        InputError: There is neither a network nor a file.
    """

    def __init__(
        self,
        backbone: Optional[dict] = None,
        checkpoint: Optional[str] = None,
        prefix: Optional[str] = None,
        size: Optional[int] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        to_rgb: Optional[bool] = None,
        half: bool = True,
        view_pixels: Optional[dict] = None,
    ) -> None:
        super().__init__()
        self.fill = None
        if checkpoint is not None:
            source = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint, prefix=prefix)
            self.fill = WEIGHT_INITIALIZERS.build(source)
        elif backbone is None:
            raise InputError(
                'there is no teacher: set teacher=dict(checkpoint=FILE), or teacher=dict(backbone='
                'dict(...)) for one with random weights'
            )
        pixels = {}
        if backbone is None:
            described = self.fill.describe_network()
            backbone, pixels = described.pop('backbone'), described
        if size is not None:
            check_counts(size=size)
        self.size, self.half = size, half
        self.backbone = MODELS.build(backbone)
        if isinstance(self.backbone, VisionTransformer):
            self.backbone.out_type = 'raw'  # tokens: the class token is needed too
            self.channels = (self.backbone.embed_dims,) * len(self.backbone.out_indices)
        else:
            self.channels = map_channels(self.backbone)
        known = {**IMAGENET_PIXELS, **getattr(self.backbone, 'pixels', {}), **pixels}
        asked = dict(mean=mean, std=std, to_rgb=to_rgb)
        known.update({name: value for name, value in asked.items() if value is not None})
        self._set_pixels(known, view_pixels or IMAGENET_PIXELS)
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.ready = self.fill is None
        if self.fill is not None:
            self._register_state_dict_hook(_leave_out)
            self._register_load_state_dict_pre_hook(self._keep_weights)
        self.train(False)

    def _set_pixels(self, teacher: dict, views: dict) -> None:
        """Set what turns the pixels of views into the teacher's: x · scale + shift."""
        mean, std, view_mean, view_std = (
            torch.as_tensor(pixels[name], dtype=torch.float).view(1, -1, 1, 1)
            for pixels in (teacher, views)
            for name in ('mean', 'std')
        )
        self.flip = bool(teacher['to_rgb']) != bool(views.get('to_rgb', True))
        if self.flip and view_mean.size(1) == 3:
            view_mean, view_std = view_mean.flip(1), view_std.flip(1)
        scale, shift = view_std / std, (view_mean - mean) / std
        self.same_pixels = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def train(self, mode: bool = True) -> 'FrozenTeacher':
        """Stay in evaluation mode."""
        return super().train(False)

    def init_weights(self) -> None:
        """Fill the network from its file, or initialize it.

        Raises:
            CheckpointError: One line: the file cannot be read, or does not fit.
        """
        if self.fill is None:
            super().init_weights()
        elif not self.ready:
            network = getattr(self.backbone, 'timm_model', self.backbone)
            network.init_cfg = None  # of the network's own class: the file fills all of it
            self.fill(network)
            for parameter in self.parameters():
                parameter.requires_grad = False
        self.ready = True

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tuple[List[Tensor], Tensor]:
        """Return what the student is to match.

        Args:
            views (Tensor): N×3×H×W, normalised as the student's.

        Returns:
            Tuple[List[Tensor], Tensor]: The maps, each N×C×h×w, and a vector of each image, N×C:
            the class token, or the mean of the last map. The numbers of each location, and of each
            vector, have mean 0 and standard deviation 1, as in feature distillation
            (https://arxiv.org/abs/2205.14141), section 3.1.

        Raises:
            InputError: The network was not filled, or takes images of other channels.
        """
        if not self.ready:
            raise InputError("the teacher's weights are not filled: call init_weights() first")
        taken = input_channels(self.backbone)
        if taken not in (None, views.size(1)):
            raise InputError(
                f'the images have {views.size(1)} channels, the teacher takes {taken}: take a '
                'teacher of such images'
            )
        images = self.prepare(views)
        with self._precision(images):
            outputs = self.backbone(images)
        outputs = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
        token = None
        if isinstance(self.backbone, VisionTransformer):
            token = outputs[-1][:, 0] if self.backbone.with_cls_token else None
            outputs = [self._as_map(tokens, images) for tokens in outputs]
        maps = [_standardize(x) for x in outputs]
        token = outputs[-1].float().mean((2, 3)) if token is None else token
        return maps, _standardize(token)

    def prepare(self, views: Tensor) -> Tensor:
        """Return views at the teacher's size, with its pixels."""
        images = views.flip(1) if self.flip and views.size(1) == 3 else views
        if not self.same_pixels:
            images = images * self.scale + self.shift
        size = self.image_size(*views.shape[2:])
        if size == tuple(views.shape[2:]):
            return images
        smaller = size[0] < views.size(2)
        return interpolate(images, size, mode='bilinear', antialias=smaller, align_corners=False)

    def image_size(self, height: int, width: int) -> Tuple[int, int]:
        """Return the size that views of a size are resized to."""
        if self.size is not None:
            return self.size, self.size
        if not isinstance(self.backbone, VisionTransformer):
            return height, width
        longer, own = max(height, width), max(self.backbone.img_size)
        scale = min(own, max(USUAL_SIZE, longer)) / longer
        patch = self.backbone.patch_embed.projection.stride
        return tuple(ceil(x * scale / p) * p for x, p in zip((height, width), patch))

    def _as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        patch = self.backbone.patch_embed.projection.stride
        grid = [x // p for x, p in zip(images.shape[2:], patch)]
        return tokens[:, self.backbone.num_extra_tokens :].transpose(1, 2).unflatten(2, grid)

    def _precision(self, images: Tensor) -> ContextManager:
        if not (self.half and images.is_cuda and torch.cuda.is_available()):
            return nullcontext()
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast('cuda', dtype=half)

    def _keep_weights(self, state_dict: Dict[str, Tensor], prefix: str, *args) -> None:
        """Take the place of the weights that a checkpoint does not have."""
        for name, value in self.backbone.state_dict(prefix=f'{prefix}backbone.').items():
            state_dict.setdefault(name, value)


def _leave_out(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str, metadata) -> None:
    """Take the teacher's tensors out of a checkpoint."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        del state_dict[name]


def _standardize(x: Tensor) -> Tensor:
    """Give the numbers of each vector along the channels, N×C×…, mean 0 and deviation 1."""
    with torch.autocast(x.device.type, enabled=False):
        return layer_norm(x.float().movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
