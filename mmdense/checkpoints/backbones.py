# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmpretrain.models import ResNet
from torch import Tensor, nn

from mmdense.checkpoints import read_checkpoint, recognise, saved_model_config
from mmdense.models.utils.batch_norm import _norms
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError

from .architectures import resnet_stages

# ImageNet's, for files that do not say what their backbone was trained with.
_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


class Backbones(NamedTuple):
    """A backbone twice, in eval mode, on the CPU.

    Attributes:
        pretrained (nn.Module): With the weights of the file.
        random (nn.Module): With random ones, see :func:`calibrate`.
        preprocessor (nn.Module): Of mmpretrain; N×3×H×W uint8, BGR, to
            what the backbone takes.
        about (str): What it is and how that is known.
    """

    pretrained: nn.Module
    random: nn.Module
    preprocessor: nn.Module
    about: str


def load_backbones(
    checkpoint: str, prefix: Optional[str] = None, config: Optional[str] = None
) -> Backbones:
    """Builds the backbone of a checkpoint twice: pretrained and random.

    The architecture is that of the config that MMEngine wrote into the file,
    which is read as data: nothing in it runs. A file without one must hold a
    ResNet, whose depth shows in its tensors, for images normalised as usual
    for ImageNet.

    Args:
        checkpoint (str): Any that :func:`mmdense.checkpoints.recognise` knows.
        prefix (str, optional): Take the tensors below this prefix instead of
            what the file is for.
        config (str, optional): The config of the run, in place of the one in
            the file.

    Returns:
        Backbones: The random one is the same at every call. All of its
        normalisation scales are 1, also those that a recipe starts at 0 so
        that blocks are identities: it is to be as deep as the other.

    Raises:
        CheckpointError: When the file is no checkpoint, holds code, holds no
            backbone, one of unknown architecture, or one that does not fit
            the config.
    """
    content = read_checkpoint(checkpoint)
    found = recognise(content, name=checkpoint, prefix=prefix)
    if config is None:
        model = saved_model_config(found.meta, checkpoint, parts=['backbone']) or {}
    else:
        model = Config.fromfile(config).get('model') or {}
    cfg, source = model.get('backbone'), config or "the run's config"
    if isinstance(cfg, dict):
        cfg = {k: v for k, v in cfg.items() if k not in ('init_cfg', 'pretrained')}
    else:
        cfg, source = _resnet_config(found.backbone, checkpoint), 'its tensors'
    weights = dict(type='mmdense.SelfSupPretrained', checkpoint=checkpoint, prefix=prefix)
    scope = 'mmdense' if config or 'mmdense' in found.meta else 'mmpretrain'
    with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [MODELS.build(dict(cfg, **init)) for init in (dict(init_cfg=weights), {})]
        for network in networks:
            network.init_weights()
    pretrained, random = map(revert_sync_batchnorm, networks)
    pretrained.eval()
    random.eval()
    for norm in _norms(random):
        nn.init.ones_(norm.weight)
    pixels = model.get('data_preprocessor') or _IMAGENET
    pixels = {k: pixels[k] for k in ('mean', 'std', 'to_rgb', 'bgr_to_rgb') if k in pixels}
    preprocessor = MODELS.build(dict(pixels, type='mmpretrain.SelfSupDataPreprocessor'))
    kind = f'{type(random).__name__}{f"-{random.depth}" if isinstance(random, ResNet) else ""}'
    return Backbones(pretrained, random, preprocessor, f'{kind} by {source}')


def _resnet_config(tensors: Dict[str, Tensor], name: str) -> dict:
    """The ResNet that has such tensors."""
    convs = {2: 'BasicBlock', 3: 'Bottleneck'}
    blocks, kinds = zip(*(resnet_stages(tensors) or [(0, 0)]))
    for depth, (kind, stages) in ResNet.arch_settings.items():
        if stages == blocks and {convs.get(k) for k in kinds} == {kind.__name__}:
            return dict(type='mmpretrain.ResNet', depth=depth)
    raise CheckpointError(
        f'{name} holds a backbone of unknown kind: it has no config of its run, and is not a '
        'ResNet-18, 34, 50, 101 or 152 by its tensors'
    )
