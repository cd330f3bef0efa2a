# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Build backbones and algorithms from any checkpoint file."""

from typing import Dict, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmpretrain.models import ResNet
from torch import Tensor, nn

from mmdense.datasets import LoadImage
from mmdense.models.utils.batch_norm import _norms
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.imagenet import IMAGENET_PIXELS

from .formats import check_finite, recognise
from .io import read_checkpoint
from .model_config import as_transferred, saved_model_config
from .networks import find_network
from .self_sup_pretrained import SelfSupPretrained


class Backbones(NamedTuple):
    """Hold a backbone twice, in eval mode, on the CPU.

    Attributes:
        pretrained (nn.Module): The backbone with the weights of the file.
        random (nn.Module): The backbone with random ones, see
            :func:`~mmdense.models.utils.batch_norm.calibrate`.
        preprocessor (nn.Module): Data preprocessor that turns N×C×H×W uint8, BGR with 3 channels,
            into the input of the backbone.
        about (str): The network, and the source of that knowledge.
        load (LoadImage): Reads images as the training did.
    """

    pretrained: nn.Module
    random: nn.Module
    preprocessor: nn.Module
    about: str
    load: LoadImage


def load_backbones(
    checkpoint: str, prefix: Optional[str] = None, config: Optional[str] = None
) -> Backbones:
    """Build the backbone of a checkpoint twice: pretrained and random.

    The architecture is that of the config that MMEngine wrote into the file,
    which is read as data: nothing in it runs. A file without one must hold a
    network of mmpretrain, which its tensors show, for images normalised as
    usual for ImageNet.

    Args:
        checkpoint (str): Any that :func:`mmdense.checkpoints.recognise` knows.
        prefix (str, optional): Take the tensors below this prefix instead of
            the exported backbone.
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
        cfg = as_transferred(cfg)
        cfg = {k: v for k, v in cfg.items() if k not in ('init_cfg', 'pretrained')}
    else:
        cfg, source = _guess_config(found.backbone, checkpoint), 'its tensors'
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
    load, pixels = _read_loading(found.meta)
    preprocessor = _build_preprocessor(pixels or model.get('data_preprocessor') or IMAGENET_PIXELS)
    kind = type(random).__name__
    if isinstance(random, ResNet):
        kind += f'-{random.depth}'
    return Backbones(pretrained, random, preprocessor, f'{kind} by {source}', load)


def _guess_config(tensors: Dict[str, Tensor], name: str) -> dict:
    """Return the config of mmpretrain's network that has such tensors.

    Raises:
        CheckpointError: When none has; ``name`` is the file's.
    """
    network = find_network(tensors)
    if network is None or network.missed or network.config is None:
        raise CheckpointError(
            f'{name} holds a backbone of unknown kind: it has no config of its run, and its '
            'tensors do not show which network of mmpretrain it is'
        )
    return network.config


def _build_preprocessor(settings: dict) -> nn.Module:
    """Build mmpretrain's data preprocessor with the normalisation of another one's settings."""
    pixels = {k: settings[k] for k in ('mean', 'std', 'to_rgb', 'bgr_to_rgb') if k in settings}
    return MODELS.build(dict(pixels, type='mmdense.SelfSupDataPreprocessor'))


def _read_loading(meta: dict) -> Tuple[LoadImage, Optional[dict]]:
    """Return what reads images as the training of a checkpoint did, and its mean and std where
    these are of other than three channels."""
    own = meta.get('mmdense')
    images = own.get('images') if isinstance(own, dict) else None
    images = images if isinstance(images, dict) else {}
    load = LoadImage(channels=images.get('channels', 3), value_range=images.get('value_range'))
    pixels = {name: images[name] for name in ('mean', 'std') if name in images}
    return load, pixels or None


def load_algorithm(
    checkpoint: str,
    config: Optional[str] = None,
    kind: type = BaseModel,
    part: str = '',
    part_name: str = 'algorithm',
) -> BaseModel:
    """Build the algorithm of a training checkpoint, and fill it strictly.

    Args:
        checkpoint (str): A training checkpoint.
        config (str, optional): The config of the run. Defaults to the one that
            MMEngine wrote into the checkpoint, which is read as data: nothing
            in it runs.
        kind (type): Class that the algorithm must be of. Defaults to any.
        part (str): Path of the sub-module to fill, if the others are not
            needed. Defaults to '', all of it.
        part_name (str): Name of the part in messages.

    Returns:
        BaseModel: In eval mode, on the CPU.

    Raises:
        CheckpointError: When the file is no checkpoint, holds no config or no
            complete algorithm, or does not fit the config.
        InputError: When the config is of another algorithm.
    """
    found = recognise(read_checkpoint(checkpoint), name=checkpoint, prefix=part or None)
    if config is not None:
        source, cfg = config, Config.fromfile(config).get('model') or {}
    else:
        source, cfg = 'its own config', saved_model_config(found.meta, checkpoint)
    if cfg is None:
        raise CheckpointError(
            f'{checkpoint} does not say with which model it was trained: give the config of the '
            'run, --config'
        )
    with DefaultScope.overwrite_default_scope('mmdense'):
        built = cfg.get('type')
        built = MODELS.get(built) if isinstance(built, str) else built
        if not isinstance(built, type) or not issubclass(built, kind):
            raise InputError(f'the model of {source} is {cfg.get("type")}, not {kind.__name__}')
        model = MODELS.build(cfg)
    module = model.get_submodule(part)
    match = SelfSupPretrained(checkpoint, part or None).match(module, found)
    wrong = sorted({*match.missing, *match.misshapen, *match.extra})
    if wrong:
        key = wrong[0]
        file, wanted = (
            tuple(tensors[key].shape) if key in tensors else 'none'
            for tensors in (match.offered, match.wanted)
        )
        raise CheckpointError(
            f"{checkpoint} does not fit the model of {source}: {len(wrong)} of the {part_name}'s "
            f'tensors differ, first {key} (file: {file}, model: {wanted})'
        )
    check_finite(match.offered, checkpoint)
    module.load_state_dict(match.offered, strict=False)
    return model.eval()
