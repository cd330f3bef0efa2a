# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find the network that a file's tensors belong to, and what the file lacks of it."""

import inspect
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import mmpretrain.models
import torch
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmpretrain.models import RegNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmdense.models.backbones import EfficientNetLite, RegisterViT
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError
from mmdense.utils.imagenet import CLIP_PIXELS, IMAGENET_PIXELS

from .architectures import (
    architecture,
    has_average_pool,
    has_deep_stem,
    has_prefixes,
    resnet_stages,
    translate_layers,
)
from .formats import Recognised
from .model_config import FETCHES, saved_backbone_config, saved_model_config


class Network(NamedTuple):
    """Describe the network that a file's tensors belong to.

    Attributes:
        name (str): Class and variant, such as 'ResNet-50'.
        missed (list[str]): Names of its tensors that the file lacks, sorted. BatchNorm's counters,
            which old files do not have, are not among them.
        resized (list[str]): Names of tensors that have another shape in the file, as those of a
            ResNet of another width have.
        config (dict, optional): Its config, for mmpretrain's registry; it returns maps. None where
            the tensors do not show it: they do not tell the groups of GroupNorm.
    """

    name: str
    missed: List[str]
    resized: List[str]
    config: Optional[Dict[str, Any]]

    @property
    def fits(self) -> bool:
        """Return whether the file holds all of the network, in its sizes."""
        return not self.missed and not self.resized


def find_network(tensors: Dict[str, Tensor], meta: Optional[dict] = None) -> Optional[Network]:
    """Find the network that a backbone's tensors belong to, by their names.

    Args:
        tensors (Dict[str, Tensor]): Tensors named as in a backbone.
        meta (dict, optional): ``meta`` of the file, whose config of a run is tried first. Defaults
            to None.

    Returns:
        Network, optional: Of the network of the config, and of those that mmpretrain builds, the
        first that has all these tensors, in these sizes, and few others; else the one that has
        fewest others. None where no network has all of them.
    """
    best = None
    for config in _list_configs(tensors, meta or {}):
        with suppress(Exception):  # of whatever backbone, in whatever version of its package
            network = _compare(config, tensors)
            if network is not None and (best is None or _count(network) < _count(best)):
                best = network
                if len(best.missed) < len(tensors) / 20 and not best.resized:
                    break
    if best is None or len(best.missed) > len(tensors) or _is_shorter(best.missed, tensors):
        return None
    return best


def describe_network(found: Recognised, name: str) -> Dict[str, Any]:
    """Return the config of a file's backbone, and the normalisation of its pixels.

    Args:
        found (Recognised): The file.
        name (str): Name of the file, for messages.

    Returns:
        dict: ``backbone``, and ``mean``, ``std`` and ``to_rgb``: those of the run where the file
        has its config, else those that the network was released with, else ImageNet's.

    Raises:
        CheckpointError: The tensors do not show the network.
    """
    network = find_network(found.backbone, found.meta)
    if network is None or not network.fits or network.config is None:
        raise CheckpointError(
            f'{name} ({found}) does not show which network it is for: set its backbone, with the '
            "type 'mmpretrain.TIMMBackbone' for one of timm"
        )
    pixels = dict(IMAGENET_PIXELS)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pixels.update(getattr(MODELS.get(network.config['type']), 'pixels', {}))
    config = dict(network.config)
    if config.get('pre_norm'):
        pixels.update(CLIP_PIXELS)
        config['norm_cfg'] = dict(type='LN', eps=1e-5)
        if found.source == 'CLIP':
            config['layer_cfgs'] = dict(act_cfg=dict(type='mmpretrain.QuickGELU'))
    run = (saved_model_config(found.meta, name, parts=['data_preprocessor']) or {}).get(
        'data_preprocessor'
    )
    if isinstance(run, dict):
        pixels.update({key: run[key] for key in pixels if key in run})
    return dict(backbone=config, **pixels)


def _count(network: Network) -> Tuple[int, int]:
    return len(network.missed), len(network.resized)


def _is_shorter(missed: List[str], tensors: Dict[str, Tensor]) -> bool:
    """Return whether all that is missed are the last blocks of stages: it is another depth."""
    blocks = {match.group() for match in map(_BLOCK.match, missed) if match}
    whole = all(_BLOCK.match(name) for name in missed)
    there = {match.group() for match in map(_BLOCK.match, tensors) if match}
    return bool(missed) and whole and not blocks & there and _stages(blocks) <= _stages(there)


_BLOCK = re.compile(r'(?:layer\d+|layers|stages\.\d+(?:\.blocks)?)\.\d+\.')


def _stages(blocks: Iterable[str]) -> FrozenSet[str]:
    return frozenset(block.rstrip('.').rpartition('.')[0] for block in blocks)


def _list_configs(tensors: Dict[str, Tensor], meta: dict) -> Iterator[Dict[str, Any]]:
    config = saved_backbone_config(meta)
    if config is not None:
        yield config
    if any(re.match(r'layer\d\.\d+\.conv\d\.', key) for key in tensors):
        yield from _guess_configs(tensors)
    else:
        for kind in _list_kinds(tensors):
            yield from _each_variant(kind, tensors)


def _compare(config: Dict[str, Any], tensors: Dict[str, Tensor]) -> Optional[Network]:
    """Compare a network with the tensors; None where it does not have all of them."""
    wanted = build_empty(config).state_dict()
    tensors = translate_layers(tensors, wanted)  # a deep stem in another package's names
    if any(name not in wanted for name in tensors):
        return None
    lacks = (name for name in wanted if name not in tensors)
    missed = sorted(name for name in lacks if not name.endswith('num_batches_tracked'))
    resized = sorted(name for name, value in tensors.items() if value.shape != wanted[name].shape)
    kind = re.sub('V1[cd]$', '', config['type'].rpartition('.')[2])
    variant = config.get('depth', config.get('arch'))
    name = f'{kind}-{variant}' if isinstance(variant, (int, str)) else kind
    shown = config.get('norm_cfg') != _ANY_GROUPS
    return Network(name, missed, resized, config if shown else None)


def build_empty(config: Dict[str, Any]) -> nn.Module:
    """Build a network of mmpretrain without memory for its large tensors: for its names, shapes
    and settings."""
    with DefaultScope.overwrite_default_scope('mmpretrain'), _NoMemory():
        return MODELS.build(dict(config))


class _NoMemory(TorchFunctionMode):
    """Make large tensors, which ``torch.empty`` makes, without memory: a network is built in no
    time, for its names alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs['device'] = 'meta'
        return function(*args, **kwargs)


def _guess_configs(tensors: Dict[str, Tensor]) -> Iterator[Dict[str, Any]]:
    """Yield the configs of mmpretrain's networks with stages that may have such tensors."""
    kind, norm = architecture(tensors).kind, _guess_norm(tensors)
    settings: Dict[str, Any] = {} if norm['type'] == 'BN' else dict(norm_cfg=norm)
    if kind == 'HRNet':
        width = tensors['stage2.0.branches.0.0.conv1.weight'].size(0)
        yield dict(type='mmpretrain.HRNet', arch=f'w{width}', **settings)
        return
    if kind == 'Res2Net':
        branches = [int(match.group(1)) for match in map(_BRANCH.search, tensors) if match]
        settings.update(scales=max(branches) + 2)
        settings.update(base_width=tensors['layer1.0.convs.0.weight'].size(0))
        settings.update(deep_stem=has_deep_stem(tensors), avg_down=has_average_pool(tensors))
    if kind in ('Res2Net', 'ResNeSt'):
        yield from _each_depth(kind, tensors, **settings)
        return
    groups = _count_groups(tensors)
    name = 'SEResNe' if kind == 'SE-ResNet' else 'ResNe'
    name += 'Xt' if groups else 't'
    if name == 'ResNet':
        name += 'V1d' if has_average_pool(tensors) else 'V1c' if has_deep_stem(tensors) else ''
    yield from _each_depth(name, tensors, **groups, **settings)
    for arch in RegNet.arch_settings if groups else ():
        yield dict(type='mmpretrain.RegNet', arch=arch, **settings)


_BRANCH = re.compile(r'\.convs\.(\d+)\.')


def _each_depth(name: str, tensors: Dict[str, Tensor], **settings) -> Iterator[Dict[str, Any]]:
    """Yield the config of every depth, first of the one that has as many blocks as the tensors."""
    blocks = tuple(blocks for blocks, _ in resnet_stages(tensors))
    known = getattr(mmpretrain.models, name).arch_settings
    for depth in sorted(known, key=lambda depth: known[depth][1] != blocks):
        yield dict(type=f'mmpretrain.{name}', depth=depth, **settings)


def _count_groups(tensors: Dict[str, Tensor]) -> Dict[str, int]:
    """Return the groups of a bottleneck's second convolution, as a ResNeXt is set; {} for one."""
    first, second = (tensors.get(f'layer1.0.conv{i}.weight') for i in (1, 2))
    if first is None or second is None or second.dim() != 4 or len(first) == second.size(1):
        return {}
    return dict(groups=len(first) // second.size(1), width_per_group=second.size(1))


_ANY_GROUPS = dict(type='GN', num_groups=1)


def _guess_norm(tensors: Dict[str, Tensor]) -> Dict[str, Any]:
    """Return a norm whose layers are called as in these tensors."""
    names = {name for key in tensors for name in re.findall(r'\b(gn|in|ln)\d?\.', key)}
    if 'gn' in names:
        return _ANY_GROUPS
    if 'in' in names:
        return dict(type='IN', affine=True)
    if 'ln' in names:
        return dict(type='LN2d')
    return dict(type='BN' if any('running_mean' in key for key in tensors) else 'IN')


# ---------------------------------------------------------------- networks of other kinds

# Others have the same names: these are tried first.
_FIRST = (
    *('VisionTransformer', 'ConvNeXt', 'SwinTransformer', 'SwinTransformerV2', 'EfficientNet'),
    *('EfficientNetV2', 'MobileNetV2', 'MobileNetV3'),
)


@lru_cache(maxsize=None)
def _all_kinds() -> Tuple[type, ...]:
    """Return all backbones of mmpretrain but those of its own trainings, and those that fetch a
    model from elsewhere; and those of mmdense that others pretrained."""
    found = {kind for kind in vars(mmpretrain.models).values() if inspect.isclass(kind)}
    kinds = [kind for kind in found if '.backbones.' in kind.__module__]
    kinds = [kind for kind in kinds if issubclass(kind, BaseModule)]
    kinds = [kind for kind in kinds if not any(part in kind.__module__ for part in FETCHES)]
    kinds += [EfficientNetLite, RegisterViT]
    return tuple(
        sorted(kinds, key=lambda k: (k.__name__ not in _FIRST, len(k.__name__), k.__name__))
    )


def _list_kinds(tensors: Dict[str, Tensor]) -> Iterator[type]:
    """Yield the backbones most of whose names are those of the tensors, but for numbers."""
    names = _without_numbers(tensors)
    for kind in _all_kinds():
        if len(names & _names_of(kind)) > 0.6 * len(names):
            yield kind


def _without_numbers(names: Iterable[str]) -> FrozenSet[str]:
    return frozenset(re.sub(r'\d+', '0', name) for name in names)


@lru_cache(maxsize=None)
def _names_of(kind: type) -> FrozenSet[str]:
    """Return the names of a backbone's first variant, without numbers; none where it cannot be
    built from its variant alone."""
    with suppress(Exception):  # of whatever backbone
        config = dict(type=kind, **_variants(kind)[0], **_batch_norm(kind))
        return _without_numbers(build_empty(config).state_dict())
    return frozenset()


def parameters_of(kind: type) -> Dict[str, inspect.Parameter]:
    """Return the arguments of a class, also those that it hands on to its bases."""
    taken: Dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        own = inspect.signature(base.__init__).parameters
        taken = {**own, **taken}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return taken


def _batch_norm(kind: type) -> Dict[str, Any]:
    """Return the setting that gives BatchNorm to a backbone that has no norm by default, a VGG."""
    norm = parameters_of(kind).get('norm_cfg')
    return dict(norm_cfg=dict(type='BN')) if norm is not None and norm.default is None else {}


def _variants(kind: type) -> List[Dict[str, Any]]:
    """List the settings of a backbone's variants; of those of one size only the first name."""
    taken = parameters_of(kind)
    known = getattr(kind, 'arch_zoo', None) or getattr(kind, 'arch_settings', None)
    for name in ('arch', 'depth'):
        if name in taken and isinstance(known, dict):
            names = {id(v) if isinstance(v, dict) else k: k for k, v in reversed(known.items())}
            return [{name: variant} for variant in known if variant in names.values()]
    if 'widen_factor' in taken:
        return [dict(widen_factor=factor) for factor in (1.0, 0.5, 0.25, 0.35, 0.75, 1.4, 1.5, 2.0)]
    return [{}]


# It has twice the heads of others of its size; its positions are fixed.
_MOCOV3_SMALL = dict(embed_dims=384, num_layers=12, num_heads=12, feedforward_channels=1536)


def _each_variant(kind: type, tensors: Dict[str, Tensor]) -> Iterator[Dict[str, Any]]:
    """Yield the config of every variant of a backbone, with the settings that the tensors show."""
    taken = parameters_of(kind)
    shown = {key: value for key, value in _read_settings(tensors).items() if key in taken}
    if any(name.endswith('running_mean') for name in tensors):
        shown.update(_batch_norm(kind))
    if 'window_size' in shown and not isinstance(taken['window_size'].default, int):
        del shown['window_size']
    variants = _variants(kind)
    if kind is mmpretrain.models.VisionTransformer and _has_fixed_positions(tensors):
        variants.insert(0, dict(arch=_MOCOV3_SMALL))
    package = kind.__module__.partition('.')[0]
    for variant in variants:
        yield dict(type=f'{package}.{kind.__name__}', **variant, **shown)


def _read_settings(tensors: Dict[str, Tensor]) -> Dict[str, Any]:
    """Return settings that the tensors show, by the names of arguments, and those that give maps of
    any size."""
    settings: Dict[str, Any] = dict(
        gap_before_final_norm=False, out_type='featmap', pad_small_map=True
    )
    norms = {int(match.group(1)) for match in map(_OUTPUT_NORM.match, tensors) if match}
    if norms:
        settings['out_indices'] = tuple(sorted(norms))
    patch, positions = (
        tensors.get(name) for name in ('patch_embed.projection.weight', 'pos_embed')
    )
    if patch is not None and patch.dim() == 4 and positions is not None and positions.dim() == 3:
        tokens = positions.size(1) - sum(k in tensors for k in ('cls_token', 'dist_token'))
        side = round(tokens**0.5)
        settings['patch_size'] = patch.size(-1)
        if side**2 == tokens:
            settings['img_size'] = side * patch.size(-1)
    if 'layers.0.ln1.weight' in tensors:  # a vision transformer
        if 'layers.0.attn.gamma1.weight' in tensors:
            settings['layer_scale_init_value'] = 1.0
        elif not any('gamma' in name for name in tensors):
            settings['layer_scale_init_value'] = 0.0
        if has_prefixes(tensors, 'ln2.'):  # of averaged features
            del settings['out_type']
        if 'pre_norm.weight' in tensors:
            settings['pre_norm'] = True
        if 'layers.0.ffn.w12.weight' in tensors:
            settings['layer_cfgs'] = dict(ffn_type='swiglu_fused')
        if 'register_tokens' in tensors:
            settings['num_registers'] = tensors['register_tokens'].size(1)
    if 'stages.0.0.depthwise_conv.weight' in tensors and 'stages.0.0.gamma' not in tensors:
        settings['layer_scale_init_value'] = 0.0
        settings['use_grn'] = 'stages.0.0.grn.gamma' in tensors
    table = next((v for k, v in tensors.items() if k.endswith('position_bias_table')), None)
    if table is not None and table.dim() == 2:
        settings['window_size'] = (round(table.size(0) ** 0.5) + 1) // 2
    return settings


_OUTPUT_NORM = re.compile(r'norm(\d+)\.')


def _has_fixed_positions(tensors: Dict[str, Tensor]) -> bool:
    """Return whether a vision transformer's positions are waves, which leave 0 for the class."""
    positions = tensors.get('pos_embed')
    return positions is not None and positions.dim() == 3 and not positions[0, 0].any()
