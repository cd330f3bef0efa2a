# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Tell a network's architecture by the names of its tensors."""

import re
from collections import Counter
from typing import Dict, Iterable, List, NamedTuple, Tuple

from mmpretrain.models import ResNet
from torch import Tensor


def first_names(tensors: Iterable[str]) -> List[str]:
    """Return the first parts of dotted tensor names, sorted, each once."""
    return sorted({key.split('.')[0] for key in tensors})


def has_prefixes(tensors: Dict[str, Tensor], *prefixes: str) -> bool:
    """Return whether a tensor name begins with each of the prefixes."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes)


class Architecture(NamedTuple):
    """Describe a kind of network; ``str()`` gives it in words, such as 'a ResNet-50'.

    Attributes:
        kind (str): :data:`RESNET`, :data:`LAST_STAGE`, ``'Swin Transformer'``, …; ``''`` where it
            is not known.
        depth (int): Layers of a ResNet of four stages; 0 for others.
        deep_stem (bool): Whether a ResNet begins with three convolutions.
        blocks (Tuple[int, ...]): Blocks of each stage of a ResNet of fewer or more than four.
        parts (Tuple[str, ...]): Names of the first parts of a network that is not known.
    """

    kind: str
    depth: int = 0
    deep_stem: bool = False
    blocks: Tuple[int, ...] = ()
    parts: Tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == LAST_STAGE:
            return f'the {self.kind}'
        if self.depth:
            name = f'{self.kind}-{self.depth}'
        elif self.blocks:
            name = f'network with {list(self.blocks)} blocks'
        else:
            name = self.kind or f'network of {", ".join(self.parts) or "nothing"}'
        name = with_article(name)
        return f'{name} with a deep stem' if self.deep_stem else name


def with_article(name: str) -> str:
    """Return 'an HRNet', or 'a ResNet'."""
    spoken = name.startswith(('HR', 'SE', 'SV', 'MV', 'RIF')) or name[:1] in 'AEIO'
    return f'an {name}' if spoken else f'a {name}'


RESNET = 'ResNet'
LAST_STAGE = 'last stage of a ResNet'


def architecture(tensors: Dict[str, Tensor]) -> Architecture:
    """Tell the architecture of a network with such tensors, named as in a backbone."""
    for part, kind in _RESNET_LIKE:
        if any(part in key for key in tensors):
            stages = resnet_stages(tensors) if kind != 'HRNet' else []
            depth = sum(blocks * convs for blocks, convs in stages) + 2 if stages else 0
            return Architecture(kind, depth)
    stages = resnet_stages(tensors)
    if stages:
        deep = has_deep_stem(tensors)
        depth = sum(blocks * convs for blocks, convs in stages) + 2
        if len(stages) == 4 and (depth in ResNet.arch_settings or depth in (200, 269)):
            return Architecture(RESNET, depth, deep)
        return Architecture(RESNET, deep_stem=deep, blocks=tuple(b for b, _ in stages))
    for part, kind in _ARCHITECTURES:
        if any(part in key for key in tensors):
            return Architecture(kind)
    if first_names(tensors) == ['layer4']:
        return Architecture(LAST_STAGE)
    return Architecture('', parts=tuple(first_names(tensors)[:4]))


# Networks with stages as a ResNet's, by a part of a name that no ResNet has.
_RESNET_LIKE = (
    ('stage2.0.branches.', 'HRNet'),
    ('.convs.', 'Res2Net'),
    ('.conv2.fc1.', 'ResNeSt'),
    ('.se_layer.', 'SE-ResNet'),
)

_ARCHITECTURES = (
    ('word_embeddings', 'language model'),
    ('relative_position_bias_table', 'Swin Transformer'),
    ('depthwise_conv', 'ConvNeXt'),
    ('dwconv', 'ConvNeXt'),
    ('cls_token', 'vision transformer'),
    ('pos_embed', 'vision transformer'),
)


def has_deep_stem(tensors: Dict[str, Tensor]) -> bool:
    """Return whether a ResNet begins with three convolutions (V1c, V1d)."""
    return has_prefixes(tensors, 'stem.') or 'conv1.0.weight' in tensors


def translate_layers(tensors: Dict[str, Tensor], like: Iterable[str]) -> Dict[str, Tensor]:
    """Name the layers of a ResNet V1c or V1d as another package does.

    mmpretrain (``stem.0.conv``), mmdet and mmseg (``stem.0``), and timm (``conv1.0``) have the same
    three convolutions in a deep stem. V1d's shortcuts of the first stage have no pool before their
    convolution in mmpretrain, one that does nothing elsewhere.

    Args:
        tensors (Dict[str, Tensor]): Tensors named as in a backbone.
        like (Iterable[str]): Names of the tensors of the backbone that is to be filled.

    Returns:
        Dict[str, Tensor]: The same tensors. A layer that only one of the two has keeps its name.
    """
    like = list(like)
    names = dict(zip(_shortcut_layers(tensors), _shortcut_layers(like)))
    names.update(zip(_stem_layers(tensors), _stem_layers(like)))
    renamed = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition('.')
        renamed[f'{names.get(layer, layer)}.{kind}' if layer else key] = value
    return renamed


def _shortcut_layers(names: Iterable[str]) -> List[str]:
    """List a convolution and a norm: of the shortcut in the first block."""
    first = int('layer1.0.downsample.2.weight' in set(names))
    return [f'layer1.0.downsample.{first + i}' for i in range(2)]


def _stem_layers(names: Iterable[str]) -> List[str]:
    """List the layers of a stem: a convolution and a norm, three times; [] where it is not deep."""
    names = set(names)
    norm = next((m.group(1) for m in map(_STEM_NORM.match, sorted(names)) if m), 'bn')
    if 'stem.0.conv.weight' in names:
        return [f'stem.{i}.{layer}' for i in range(3) for layer in ('conv', norm)]
    if 'stem.0.weight' in names:
        return [f'stem.{i}' for i in (0, 1, 3, 4, 6, 7)]
    if 'conv1.0.weight' in names:
        return [*(f'conv1.{i}' for i in (0, 1, 3, 4, 6)), 'bn1']
    return []


_STEM_NORM = re.compile(r'stem\.0\.(?!conv\.)([a-z]+)\.')


def has_average_pool(names: Iterable[str]) -> bool:
    """Return whether a ResNet's shortcuts begin with a pool (V1d), which shifts their names."""
    return any('.downsample.2.' in name for name in names)


def resnet_stages(tensors: Dict[str, Tensor]) -> List[Tuple[int, int]]:
    """Return (blocks, convolutions of a block) of each stage; [] if it is no ResNet."""
    stages = []
    while True:
        match = [re.match(rf'layer{len(stages) + 1}\.(\d+)\.conv(\d)\.', k) for k in tensors]
        found = [(int(m.group(1)) + 1, int(m.group(2))) for m in match if m]
        if not found:
            return stages
        stages.append((max(b for b, _ in found), max(c for _, c in found)))


def count_by_part(names: Iterable[str]) -> str:
    """Count tensors by their first part, in words: 'encoder_k 320, projector 9'."""
    counts = Counter(name.split('.')[0] for name in names)
    return ', '.join(f'{part} {number}' for part, number in counts.most_common())
