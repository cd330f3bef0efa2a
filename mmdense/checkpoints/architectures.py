# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from collections import Counter
from typing import Dict, Iterable, List, Set, Tuple

from mmpretrain.models import ResNet
from torch import Tensor


def first_names(tensors: Iterable[str]) -> List[str]:
    """Return the first parts of dotted tensor names, sorted, each once."""
    return sorted({key.split('.')[0] for key in tensors})


def has_prefixes(tensors: Dict[str, Tensor], *prefixes: str) -> bool:
    """Return whether a tensor name begins with each of the prefixes."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes)


def architecture(tensors: Dict[str, Tensor]) -> str:
    """What kind of network has such tensors, for people.

    Args:
        tensors (Dict[str, Tensor]): Named as in a backbone.

    Returns:
        str: Such as 'a ResNet-50', 'a Swin Transformer'.
    """
    stages = resnet_stages(tensors)
    if stages:
        deep = ' with a deep stem' if has_deep_stem(tensors) else ''
        if len(stages) == 4:
            return f'a ResNet-{sum(b * c for b, c in stages) + 2}{deep}'
        return f'a network with {[b for b, _ in stages]} blocks{deep}'
    for part, kind in _ARCHITECTURES:
        if any(part in key for key in tensors):
            return kind
    if any(key.startswith('layer4.') for key in tensors):
        return 'the last stage of a ResNet'
    return f'a network of {", ".join(first_names(tensors)[:4]) or "nothing"}'


_ARCHITECTURES = (
    ('word_embeddings', 'a language model'),
    ('relative_position_bias_table', 'a Swin Transformer'),
    ('depthwise_conv', 'a ConvNeXt'),
    ('dwconv', 'a ConvNeXt'),
    ('cls_token', 'a vision transformer'),
    ('pos_embed', 'a vision transformer'),
)


def has_deep_stem(tensors: Dict[str, Tensor]) -> bool:
    """Whether a ResNet begins with three convolutions (V1c, V1d)."""
    return has_prefixes(tensors, 'stem.') or 'conv1.0.weight' in tensors


def resnet_stages(tensors: Dict[str, Tensor]) -> List[Tuple[int, int]]:
    """(blocks, convolutions of a block) of each stage; [] if it is no ResNet."""
    stages = []
    while True:
        match = [re.match(rf'layer{len(stages) + 1}\.(\d+)\.conv(\d)\.', k) for k in tensors]
        found = [(int(m.group(1)) + 1, int(m.group(2))) for m in match if m]
        if not found:
            return stages
        stages.append((max(b for b, _ in found), max(c for _, c in found)))


def missed_tensors(tensors: Dict[str, Tensor]) -> Tuple[str, List[str]]:
    """What a ResNet's file lacks.

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
    average = any('.downsample.2.' in key for key in given)  # V1d: a pool comes first
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
    """For people: 'encoder_k 320, projector 9'."""
    counts = Counter(name.split('.')[0] for name in names)
    return ', '.join(f'{part} {number}' for part, number in counts.most_common())
