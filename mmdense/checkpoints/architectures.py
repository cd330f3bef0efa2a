# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Tell a network's architecture by the names of its tensors."""

import re
from collections import Counter
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

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
        return f'a {name} with a deep stem' if self.deep_stem else f'a {name}'


RESNET = 'ResNet'
LAST_STAGE = 'last stage of a ResNet'


def architecture(tensors: Dict[str, Tensor]) -> Architecture:
    """Tell the architecture of a network with such tensors, named as in a backbone."""
    stages = resnet_stages(tensors)
    if stages:
        deep = has_deep_stem(tensors)
        if len(stages) == 4:
            depth = sum(blocks * convs for blocks, convs in stages) + 2
            return Architecture(RESNET, depth, deep)
        return Architecture(RESNET, deep_stem=deep, blocks=tuple(b for b, _ in stages))
    for part, kind in _ARCHITECTURES:
        if any(part in key for key in tensors):
            return Architecture(kind)
    if any(key.startswith('layer4.') for key in tensors):
        return Architecture(LAST_STAGE)
    return Architecture('', parts=tuple(first_names(tensors)[:4]))


_ARCHITECTURES = (
    ('word_embeddings', 'language model'),
    ('relative_position_bias_table', 'Swin Transformer'),
    ('depthwise_conv', 'ConvNeXt'),
    ('dwconv', 'ConvNeXt'),
    ('cls_token', 'vision transformer'),
    ('pos_embed', 'vision transformer'),
)


def resnet_config(tensors: Dict[str, Tensor]) -> Optional[dict]:
    """Return the config of mmpretrain's ResNet, V1c or V1d that has such tensors, for files that
    hold no config; None for another network."""
    convs = {2: 'BasicBlock', 3: 'Bottleneck'}
    blocks, kinds = zip(*(resnet_stages(tensors) or [(0, 0)]))
    depths = [
        depth
        for depth, (kind, stages) in ResNet.arch_settings.items()
        if stages == blocks and {convs.get(k) for k in kinds} == {kind.__name__}
    ]
    if not depths:
        return None
    if not has_deep_stem(tensors):
        return dict(type='ResNet', depth=depths[0])
    return dict(type='ResNetV1d' if _has_average_pool(tensors) else 'ResNetV1c', depth=depths[0])


def has_deep_stem(tensors: Dict[str, Tensor]) -> bool:
    """Return whether a ResNet begins with three convolutions (V1c, V1d)."""
    return has_prefixes(tensors, 'stem.') or 'conv1.0.weight' in tensors


def _has_average_pool(names: Iterable[str]) -> bool:
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


def missed_tensors(tensors: Dict[str, Tensor]) -> Tuple[str, List[str]]:
    """List the tensors that a ResNet's file lacks.

    Args:
        tensors (Dict[str, Tensor]): Named as in a backbone.

    Returns:
        tuple[str, list[str]]: The ResNet whose names are nearest to these, and
        which of its tensors there are not; BatchNorm's counters, which old
        files do not have, are not counted. ('', []) for other networks.
    """
    if not any(re.match(r'layer\d\.\d+\.conv\d\.', key) for key in tensors):
        return '', []
    given = {key for key in tensors if not key.endswith('num_batches_tracked')}
    average = _has_average_pool(given)
    nearest = min(
        ResNet.arch_settings,
        key=lambda depth: len(_resnet_names(depth, has_deep_stem(given), average) ^ given),
    )
    names = _resnet_names(nearest, has_deep_stem(given), average)
    return f'ResNet-{nearest}', sorted(names - given)


def _resnet_names(depth: int, deep_stem: bool, average: bool) -> Set[str]:
    block, stages = ResNet.arch_settings[depth]
    convs = 3 if block.__name__ == 'Bottleneck' else 2
    layers = [] if deep_stem else [('conv1', 'bn1')]
    for stage, blocks in enumerate(stages, 1):
        for b in range(blocks):
            path = f'layer{stage}.{b}.'
            layers += [(f'{path}conv{i}', f'{path}bn{i}') for i in range(1, convs + 1)]
            if b == 0 and (stage > 1 or convs == 3):
                first = int(average and stage > 1)  # where there is something to pool
                layers.append((f'{path}downsample.{first}', f'{path}downsample.{first + 1}'))
    names = set()
    for conv, norm in layers:
        names.add(f'{conv}.weight')
        names.update(f'{norm}.{k}' for k in ('weight', 'bias', 'running_mean', 'running_var'))
    return names


def count_by_part(names: Iterable[str]) -> str:
    """Count tensors by their first part, in words: 'encoder_k 320, projector 9'."""
    counts = Counter(name.split('.')[0] for name in names)
    return ', '.join(f'{part} {number}' for part, number in counts.most_common())
