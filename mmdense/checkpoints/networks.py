# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find the network that a file's tensors belong to, and what the file lacks of it."""

import re
from contextlib import suppress
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import mmpretrain.models
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import RegNet
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmdense.registry import MODELS

from .architectures import architecture, has_average_pool, has_deep_stem, resnet_stages
from .model_config import saved_backbone_config


class Network(NamedTuple):
    """Describe the network that a file's tensors belong to.

    Attributes:
        name (str): Class and variant, such as 'ResNet-50'.
        missed (list[str]): Names of its tensors that the file lacks, sorted. BatchNorm's counters,
            which old files do not have, are not among them.
        resized (list[str]): Names of tensors that have another shape in the file, as those of a
            ResNet of another width have.
    """

    name: str
    missed: List[str]
    resized: List[str]


def find_network(tensors: Dict[str, Tensor], meta: Optional[dict] = None) -> Optional[Network]:
    """Find the network that a backbone's tensors belong to, by their names.

    Args:
        tensors (Dict[str, Tensor]): Tensors named as in a backbone.
        meta (dict, optional): ``meta`` of the file, whose config of a run is tried first. Defaults
            to None.

    Returns:
        Network, optional: Of the network of the config, and of mmpretrain's ResNet, SEResNet (also
        with groups), Res2Net, ResNeSt, RegNet and HRNet, the first that has all these tensors and
        few others; else the one that has fewest others. None where no network has all of them.
    """
    best = None
    for config in _list_configs(tensors, meta or {}):
        with suppress(Exception):  # of whatever backbone, in whatever version of its package
            network = _compare(config, tensors)
            if network is not None and (best is None or len(network.missed) < len(best.missed)):
                best = network
                if len(best.missed) < len(tensors) / 20:
                    break
    if best is None or len(best.missed) > len(tensors) or _is_shorter(best.missed, tensors):
        return None
    return best


def _is_shorter(missed: List[str], tensors: Dict[str, Tensor]) -> bool:
    """Return whether all that is missed are the last blocks of stages: it is another depth."""
    blocks = {match.group() for match in map(_BLOCK.match, missed) if match}
    whole = all(_BLOCK.match(name) for name in missed)
    there = {match.group() for match in map(_BLOCK.match, tensors) if match}
    stages = {block.split('.')[0] for block in there}
    return (
        bool(missed)
        and whole
        and not blocks & there
        and {b.split('.')[0] for b in blocks} <= stages
    )


_BLOCK = re.compile(r'layer\d+\.\d+\.')


def _list_configs(tensors: Dict[str, Tensor], meta: dict) -> Iterator[Dict[str, Any]]:
    config = saved_backbone_config(meta)
    if config is not None:
        yield config
    yield from _guess_configs(tensors)


def _compare(config: Dict[str, Any], tensors: Dict[str, Tensor]) -> Optional[Network]:
    """Compare a network with the tensors; None where it does not have all of them."""
    with DefaultScope.overwrite_default_scope('mmpretrain'), _NoMemory():
        wanted = MODELS.build(config).state_dict()
    if any(name not in wanted for name in tensors):
        return None
    lacks = (name for name in wanted if name not in tensors)
    missed = sorted(name for name in lacks if not name.endswith('num_batches_tracked'))
    resized = sorted(name for name, value in tensors.items() if value.shape != wanted[name].shape)
    kind = re.sub('V1[cd]$', '', config['type'].rpartition('.')[2])
    variant = config.get('depth', config.get('arch'))
    return Network(
        f'{kind}-{variant}' if isinstance(variant, (int, str)) else kind, missed, resized
    )


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
    if not any(re.match(r'layer\d\.\d+\.conv\d\.', key) for key in tensors):
        return
    kind = architecture(tensors).kind
    settings: Dict[str, Any] = dict(norm_cfg=_guess_norm(tensors))
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


def _guess_norm(tensors: Dict[str, Tensor]) -> Dict[str, Any]:
    """Return a norm whose layers are called as in these tensors."""
    names = {name for key in tensors for name in re.findall(r'\b(gn|in|ln)\d?\.', key)}
    if 'gn' in names:
        return dict(type='GN', num_groups=1)
    if 'in' in names:
        return dict(type='IN', affine=True)
    return dict(type='BN')
