# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Translate the tensor names of a network between packages.

A backbone is kept in the names of mmpretrain; a ResNet's are torchvision's too. A package with
other names is one more entry in :data:`DIALECTS`.
"""

import re
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from .architectures import translate_layers

Theirs = Union[str, Tuple[str, ...]]


class Dialect(NamedTuple):
    """Hold the names that a package gives to the tensors of a network.

    Attributes:
        package (str): The package.
        network (str): The network.
        marks (Tuple[str, ...]): Patterns; each matches the beginning of a name where the tensors
            are in this dialect.
        names (Tuple[Tuple[str, str], ...]): Beginnings of their names and of ours, complete
            between dots, ``{}`` for each number. Several of theirs are the rows of one of ours.
    """

    package: str
    network: str
    marks: Tuple[str, ...]
    names: Tuple[Tuple[Theirs, str], ...]


def find_dialect(names: Iterable[str]) -> Optional[Dialect]:
    """Find the dialect that tensors are named in; None for our names and for unknown ones."""
    names = list(names)
    for dialect in DIALECTS:
        if all(any(re.match(mark, name) for name in names) for mark in dialect.marks):
            return dialect
    return None


def to_our_names(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Name a network's tensors as mmpretrain does. Tensors that the dialect does not list keep
    their names."""
    dialect = find_dialect(tensors)
    if dialect is None:
        return tensors
    renamed: Dict[str, Tensor] = {}
    rows: Dict[str, Dict[int, Tensor]] = {}
    for key, value in tensors.items():
        name, row = _rename(key, _forward(dialect))
        if row is None:
            renamed[name] = value
        else:
            rows.setdefault(name, {})[row] = value
            renamed.setdefault(name, value)  # keeps the order
    for name, parts in rows.items():
        renamed[name] = torch.cat([parts[row] for row in sorted(parts)])
    renamed = {name: _flatten(name, value) for name, value in renamed.items()}
    return _add_class_position(renamed)


def _add_class_position(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Add the class token's position to a vision transformer with registers of timm's, which has
    added it to the class token itself: 0."""
    positions = tensors.get('pos_embed')
    if 'register_tokens' not in tensors or positions is None:
        return tensors
    if round(positions.size(1) ** 0.5) ** 2 != positions.size(1):
        return tensors
    first = torch.zeros_like(positions[:, :1])
    return dict(tensors, pos_embed=torch.cat([first, positions], dim=1))


def to_names_of(dialect: Dialect, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Name a network's tensors, which have our names, in a dialect."""
    backward = [(ours, theirs) for theirs, ours in dialect.names]
    renamed = {}
    for key, value in tensors.items():
        for ours, theirs in backward:
            tail = _match(ours, key)
            if tail is None:
                continue
            numbers, rest = tail
            several = (theirs,) if isinstance(theirs, str) else theirs
            for name, part in zip(several, value.chunk(len(several)) if value.dim() else (value,)):
                renamed[name.format(*numbers) + rest] = part
            break
        else:
            renamed[key] = value
    return renamed


def translate(tensors: Dict[str, Tensor], like: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Name a network's tensors as in another one.

    Args:
        tensors (Dict[str, Tensor]): Tensors in our names.
        like (Dict[str, Tensor]): Tensors of the network that is to be filled.

    Returns:
        Dict[str, Tensor]: The same tensors. A linear layer and a convolution of size 1×1 get each
        other's shape. A layer that only one of the two has keeps its name.
    """
    dialect = find_dialect(like)
    renamed = translate_layers(tensors if dialect is None else to_names_of(dialect, tensors), like)
    return {
        name: value.reshape(like[name].shape) if _is_reshaped(value, like.get(name)) else value
        for name, value in renamed.items()
    }


def _is_reshaped(one: Tensor, other: Optional[Tensor]) -> bool:
    """Return whether two shapes differ in axes of length 1 only."""
    if other is None or one.shape == other.shape:
        return False
    return [n for n in one.shape if n != 1] == [n for n in other.shape if n != 1]


def _forward(dialect: Dialect) -> Iterator[Tuple[str, str, Optional[int]]]:
    """Yield each name of a dialect, ours, and the number of the row; None where it is alone."""
    for theirs, ours in dialect.names:
        if isinstance(theirs, str):
            yield theirs, ours, None
        else:
            for row, name in enumerate(theirs):
                yield name, ours, row


def _rename(key: str, names: Iterable[Tuple[str, str, Optional[int]]]) -> Tuple[str, Optional[int]]:
    for theirs, ours, row in names:
        found = _match(theirs, key)
        if found is not None:
            numbers, rest = found
            return ours.format(*numbers) + rest, row
    return key, None


def _match(pattern: str, key: str) -> Optional[Tuple[List[str], str]]:
    """Return the numbers in the beginning of a name and the rest of it; None for another."""
    parts, names = pattern.split('.'), key.split('.')
    if len(names) < len(parts):
        return None
    numbers = []
    for part, name in zip(parts, names):
        before, braces, after = part.partition('{}')
        if not braces:
            if part != name:
                return None
            continue
        number = name[len(before) : len(name) - len(after)]
        if not number.isdigit() or name != f'{before}{number}{after}':
            return None
        numbers.append(number)
    return numbers, ''.join(f'.{name}' for name in names[len(parts) :])


def _flatten(name: str, value: Tensor) -> Tensor:
    """Give a tensor of a ConvNeXt, or of CLIP's visual tower, the shape that mmpretrain's has."""
    if name in ('cls_token', 'pos_embed') and value.dim() < 3:
        return value.reshape(1, -1, value.size(-1))
    if re.search(r'\.pointwise_conv\d\.weight$', name) and value.dim() == 4:
        return value.flatten(1)
    return value.flatten() if re.search(r'\.(gamma|beta)$', name) else value


def _below(theirs: str, ours: str, names: Dict[Theirs, str]) -> Tuple[Tuple[Theirs, str], ...]:
    """Put pairs of names below a pair of paths."""

    def join(path: str, name: Theirs) -> Theirs:
        if isinstance(name, str):
            return f'{path}.{name}'
        return tuple(f'{path}.{part}' for part in name)

    return tuple((join(theirs, a), f'{ours}.{b}') for a, b in names.items())


# ---------------------------------------------------------------- ResNet


def _resnet_stages(theirs: str, first: int, names: Dict[str, str]) -> Tuple[Tuple[str, str], ...]:
    """List the names in four stages, whose numbers begin with ``first``."""
    pairs = (_below(theirs.format(i + first, '{}'), f'layer{i + 1}.{{}}', names) for i in range(4))
    return tuple(pair for stage in pairs for pair in stage)


_DETECTRON2_RESNET = Dialect(
    'detectron2',
    'ResNet',
    (r'stem\.conv1\.weight', r'res2\.0\.conv1\.'),
    (
        ('stem.conv1.norm', 'bn1'),
        ('stem.conv1', 'conv1'),
        *_resnet_stages(
            'res{}.{}',
            2,
            {
                'shortcut.norm': 'downsample.1',
                'shortcut': 'downsample.0',
                **{f'conv{i}.norm': f'bn{i}' for i in (1, 2, 3)},
            },
        ),
        *_resnet_stages('res{}.{}', 2, {f'conv{i}': f'conv{i}' for i in (1, 2, 3)}),
    ),
)

_TRANSFORMERS_RESNET = Dialect(
    'transformers',
    'ResNet',
    (r'embedder\.embedder\.convolution\.', r'encoder\.stages\.0\.layers\.0\.layer\.0\.convolution'),
    (
        ('embedder.embedder.convolution', 'conv1'),
        ('embedder.embedder.normalization', 'bn1'),
        *_resnet_stages(
            'encoder.stages.{}.layers.{}',
            0,
            {
                'shortcut.convolution': 'downsample.0',
                'shortcut.normalization': 'downsample.1',
                **{f'layer.{i}.convolution': f'conv{i + 1}' for i in range(3)},
                **{f'layer.{i}.normalization': f'bn{i + 1}' for i in range(3)},
            },
        ),
    ),
)

# of segmentation code: layer0 is the stem
_LAYER0_RESNET = Dialect(
    'torchvision',
    'ResNet',
    (r'layer0\.0\.weight', r'layer0\.1\.running_mean', r'layer1\.0\.conv1\.'),
    (('layer0.0', 'conv1'), ('layer0.1', 'bn1')),
)

# nn.Sequential(*list(resnet.children())[:-1])
_SEQUENTIAL_RESNET = Dialect(
    'torchvision',
    'ResNet',
    (r'0\.weight', r'1\.running_mean', r'4\.0\.conv1\.', r'7\.0\.conv1\.'),
    (('0', 'conv1'), ('1', 'bn1'), *((f'{i + 3}', f'layer{i}') for i in range(1, 5))),
)

# ---------------------------------------------------------------- vision transformer

_IN_PROJECTION = {'in_proj_weight': 'qkv.weight', 'in_proj_bias': 'qkv.bias', 'out_proj': 'proj'}

_TIMM_VIT = Dialect(
    'timm',
    'vision transformer',
    (r'patch_embed\.proj\.', r'blocks\.0\.mlp\.fc1\.', r'blocks\.0\.attn\.qkv\.'),
    (
        ('patch_embed.proj', 'patch_embed.projection'),
        *_below(
            'blocks.{}',
            'layers.{}',
            {
                'norm1': 'ln1',
                'norm2': 'ln2',
                'mlp.fc1': 'ffn.layers.0.0',
                'mlp.fc2': 'ffn.layers.1',
                'mlp.w12': 'ffn.w12',
                'mlp.w3': 'ffn.w3',
                'ls1.gamma': 'attn.gamma1.weight',
                'ls2.gamma': 'ffn.gamma2.weight',
                'attn': 'attn',
            },
        ),
        ('reg_token', 'register_tokens'),
        ('norm_pre', 'pre_norm'),
        ('norm', 'ln1'),
    ),
)

_MMSEG_VIT = Dialect(
    'mmseg',
    'vision transformer',
    (r'patch_embed\.projection\.', r'layers\.0\.attn\.attn\.in_proj_weight'),
    _below('layers.{}.attn.attn', 'layers.{}.attn', _IN_PROJECTION),
)

_TORCHVISION_VIT = Dialect(
    'torchvision',
    'vision transformer',
    (r'conv_proj\.', r'encoder\.layers\.encoder_layer_0\.self_attention\.'),
    (
        ('class_token', 'cls_token'),
        ('conv_proj', 'patch_embed.projection'),
        ('encoder.pos_embedding', 'pos_embed'),
        ('encoder.ln', 'ln1'),
        *_below(
            'encoder.layers.encoder_layer_{}',
            'layers.{}',
            {
                'ln_1': 'ln1',
                'ln_2': 'ln2',
                'mlp.0': 'ffn.layers.0.0',
                'mlp.3': 'ffn.layers.1',
                'mlp.linear_1': 'ffn.layers.0.0',  # of files before torchvision 0.13
                'mlp.linear_2': 'ffn.layers.1',
                **{f'self_attention.{a}': f'attn.{b}' for a, b in _IN_PROJECTION.items()},
            },
        ),
    ),
)


def _transformers_vit(path: str, marks: Tuple[str, ...], names: Dict[Theirs, str]) -> Dialect:
    embeddings = {
        'embeddings.cls_token': 'cls_token',
        'embeddings.position_embeddings': 'pos_embed',
        'embeddings.register_tokens': 'register_tokens',
        'embeddings.patch_embeddings.projection': 'patch_embed.projection',
        'layernorm': 'ln1',
    }
    pairs = (*embeddings.items(), *_below(path, 'layers.{}', names))
    return Dialect('transformers', 'vision transformer', marks, pairs)


_QUERY_KEY_VALUE = tuple(f'attention.attention.{part}' for part in ('query', 'key', 'value'))
_Q_K_V = tuple(f'attention.{part}_proj' for part in 'qkv')
_TRANSFORMERS_VITS = (
    _transformers_vit(
        'encoder.layer.{}',
        (
            r'embeddings\.patch_embeddings\.projection\.',
            r'encoder\.layer\.0\.layernorm_before\.',
            r'encoder\.layer\.0\.attention\.attention\.query\.',
        ),
        {
            _QUERY_KEY_VALUE: 'attn.qkv',
            'attention.output.dense': 'attn.proj',
            'layernorm_before': 'ln1',
            'layernorm_after': 'ln2',
            'intermediate.dense': 'ffn.layers.0.0',
            'output.dense': 'ffn.layers.1',
        },
    ),
    _transformers_vit(  # state_dict() of transformers 5, which writes files as above
        'layers.{}',
        (
            r'embeddings\.patch_embeddings\.projection\.',
            r'layers\.0\.layernorm_before\.',
            r'layers\.0\.attention\.q_proj\.',
        ),
        {
            _Q_K_V: 'attn.qkv',
            'attention.o_proj': 'attn.proj',
            'layernorm_before': 'ln1',
            'layernorm_after': 'ln2',
            'mlp.fc1': 'ffn.layers.0.0',
            'mlp.fc2': 'ffn.layers.1',
        },
    ),
    _transformers_vit(  # DINOv2
        'encoder.layer.{}',
        (
            r'embeddings\.patch_embeddings\.projection\.',
            r'encoder\.layer\.0\.layer_scale1\.lambda1',
            r'encoder\.layer\.0\.mlp\.fc1\.',
        ),
        {
            _QUERY_KEY_VALUE: 'attn.qkv',
            _Q_K_V: 'attn.qkv',
            'attention.output.dense': 'attn.proj',
            'attention.o_proj': 'attn.proj',
            'norm1': 'ln1',
            'norm2': 'ln2',
            'layer_scale1.lambda1': 'attn.gamma1.weight',
            'layer_scale2.lambda1': 'ffn.gamma2.weight',
            'mlp.fc1': 'ffn.layers.0.0',
            'mlp.fc2': 'ffn.layers.1',
        },
    ),
)

_CLIP_VIT = Dialect(
    'CLIP',
    'vision transformer',
    (r'class_embedding', r'conv1\.weight', r'transformer\.resblocks\.0\.attn\.in_proj_weight'),
    (
        ('class_embedding', 'cls_token'),
        ('positional_embedding', 'pos_embed'),
        ('conv1', 'patch_embed.projection'),
        ('ln_pre', 'pre_norm'),
        ('ln_post', 'ln1'),
        *_below(
            'transformer.resblocks.{}',
            'layers.{}',
            {
                'ln_1': 'ln1',
                'ln_2': 'ln2',
                'mlp.c_fc': 'ffn.layers.0.0',
                'mlp.c_proj': 'ffn.layers.1',
                **{f'attn.{a}': f'attn.{b}' for a, b in _IN_PROJECTION.items()},
            },
        ),
    ),
)

_TRANSFORMERS_CLIP = Dialect(
    'transformers',
    'vision transformer',
    (r'embeddings\.class_embedding', r'encoder\.layers\.0\.self_attn\.q_proj\.'),
    (
        ('embeddings.class_embedding', 'cls_token'),
        ('embeddings.position_embedding.weight', 'pos_embed'),
        ('embeddings.patch_embedding', 'patch_embed.projection'),
        ('pre_layrnorm', 'pre_norm'),  # so it is written there
        ('post_layernorm', 'ln1'),
        *_below(
            'encoder.layers.{}',
            'layers.{}',
            {
                tuple(f'self_attn.{part}_proj' for part in 'qkv'): 'attn.qkv',
                'self_attn.out_proj': 'attn.proj',
                'layer_norm1': 'ln1',
                'layer_norm2': 'ln2',
                'mlp.fc1': 'ffn.layers.0.0',
                'mlp.fc2': 'ffn.layers.1',
            },
        ),
    ),
)

# ---------------------------------------------------------------- ConvNeXt

_META_CONVNEXT = Dialect(
    "ConvNeXt's authors",
    'ConvNeXt',
    (r'downsample_layers\.0\.0\.', r'stages\.0\.0\.dwconv\.'),
    (
        *_below(
            'stages.{}.{}',
            'stages.{}.{}',
            {
                'dwconv': 'depthwise_conv',
                'pwconv1': 'pointwise_conv1',
                'pwconv2': 'pointwise_conv2',
            },
        ),
        ('norm', 'norm3'),
    ),
)

_TIMM_CONVNEXT = Dialect(
    'timm',
    'ConvNeXt',
    (r'stem\.0\.', r'stages\.0\.blocks\.0\.conv_dw\.', r'stages\.0\.blocks\.0\.mlp\.fc1\.'),
    (
        ('stem.{}', 'downsample_layers.0.{}'),
        ('stages.{}.downsample.{}', 'downsample_layers.{}.{}'),
        *_below(
            'stages.{}.blocks.{}',
            'stages.{}.{}',
            {
                'conv_dw': 'depthwise_conv',
                'norm': 'norm',
                'mlp.fc1': 'pointwise_conv1',
                'mlp.fc2': 'pointwise_conv2',
                'mlp.grn.weight': 'grn.gamma',
                'mlp.grn.bias': 'grn.beta',
                'gamma': 'gamma',
            },
        ),
        ('head.norm', 'norm3'),
    ),
)

_TRANSFORMERS_CONVNEXT = Dialect(
    'transformers',
    'ConvNeXt',
    (r'embeddings\.patch_embeddings\.weight', r'encoder\.stages\.0\.layers\.0\.dwconv\.'),
    (
        ('embeddings.patch_embeddings', 'downsample_layers.0.0'),
        ('embeddings.layernorm', 'downsample_layers.0.1'),
        ('encoder.stages.{}.downsampling_layer.{}', 'downsample_layers.{}.{}'),
        *_below(
            'encoder.stages.{}.layers.{}',
            'stages.{}.{}',
            {
                'dwconv': 'depthwise_conv',
                'layernorm': 'norm',
                'pwconv1': 'pointwise_conv1',
                'pwconv2': 'pointwise_conv2',
                'grn.weight': 'grn.gamma',
                'grn.bias': 'grn.beta',
                'layer_scale_parameter': 'gamma',
            },
        ),
        ('layernorm', 'norm3'),
    ),
)


def _torchvision_convnext() -> Iterator[Tuple[str, str]]:
    yield 'features.0.0', 'downsample_layers.0.0'
    yield 'features.0.1', 'downsample_layers.0.1'
    block = {0: 'depthwise_conv', 2: 'norm', 3: 'pointwise_conv1', 5: 'pointwise_conv2'}
    for i in range(4):
        for number, name in block.items():
            yield f'features.{2 * i + 1}.{{}}.block.{number}', f'stages.{i}.{{}}.{name}'
        yield f'features.{2 * i + 1}.{{}}.layer_scale', f'stages.{i}.{{}}.gamma'
    for i in range(1, 4):
        yield f'features.{2 * i}.{{}}', f'downsample_layers.{i}.{{}}'
    yield 'classifier.0', 'norm3'


_TORCHVISION_CONVNEXT = Dialect(
    'torchvision',
    'ConvNeXt',
    (r'features\.0\.0\.', r'features\.1\.0\.layer_scale'),
    tuple(_torchvision_convnext()),
)

# ---------------------------------------------------------------- MobileNet

_CONVS = ('expand_conv', 'depthwise_conv', 'linear_conv')
_MMDET_MOBILENETV2 = Dialect(
    'mmdet',
    'MobileNetV2',
    (r'layer1\.0\.depthwise_conv\.conv\.', r'layer2\.0\.expand_conv\.conv\.'),
    (  # the first stage does not expand
        *_below('layer1.{}', 'layer1.{}', {'depthwise_conv': 'conv.0', 'linear_conv': 'conv.1'}),
        *_below('layer{}.{}', 'layer{}.{}', {conv: f'conv.{i}' for i, conv in enumerate(_CONVS)}),
    ),
)

# ---------------------------------------------------------------- EfficientNet


def _lukemelas_efficientnet() -> Iterator[Tuple[str, str]]:
    """Yield the names of EfficientNet-Lite0: its blocks have one count, ours one in each stage."""
    yield '_conv_stem', 'layers.0.conv'
    yield '_bn0', 'layers.0.bn'
    block, stages = 0, (1, 2, 2, 6, 5)
    for stage, count in enumerate(stages, 1):
        for i in range(count):
            theirs, ours = f'_blocks.{block}', f'layers.{stage}.{i}'
            for conv, norm, name in (
                ('_expand_conv', '_bn0', 'expand_conv'),
                ('_depthwise_conv', '_bn1', 'depthwise_conv'),
                ('_project_conv', '_bn2', 'linear_conv'),
            ):
                yield f'{theirs}.{conv}', f'{ours}.{name}.conv'
                yield f'{theirs}.{norm}', f'{ours}.{name}.bn'
            block += 1
    yield '_conv_head', f'layers.{len(stages) + 1}.conv'
    yield '_bn1', f'layers.{len(stages) + 1}.bn'


_LUKEMELAS_EFFICIENTNET = Dialect(
    'EfficientNet-PyTorch',
    'EfficientNet',
    (r'_conv_stem\.', r'_blocks\.0\._depthwise_conv\.', r'_blocks\.15\._project_conv\.'),
    tuple(_lukemelas_efficientnet()),
)

DIALECTS = (
    _DETECTRON2_RESNET,
    _TRANSFORMERS_RESNET,
    _LAYER0_RESNET,
    _SEQUENTIAL_RESNET,
    _TIMM_VIT,
    _MMSEG_VIT,
    _TORCHVISION_VIT,
    *_TRANSFORMERS_VITS,
    _CLIP_VIT,
    _TRANSFORMERS_CLIP,
    _META_CONVNEXT,
    _TIMM_CONVNEXT,
    _TRANSFORMERS_CONVNEXT,
    _TORCHVISION_CONVNEXT,
    _MMDET_MOBILENETV2,
    _LUKEMELAS_EFFICIENTNET,
)


def dialect_of(package: str, tensors: Dict[str, Tensor]) -> Optional[Dialect]:
    """Return a package's dialect for a network whose tensors have our names; None without one."""
    for dialect in DIALECTS:
        if dialect.package == package and find_dialect(to_names_of(dialect, tensors)) == dialect:
            return dialect
    return None
