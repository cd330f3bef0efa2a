# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
from typing import Dict, List, Tuple

from torch import Tensor

_LAYERS = (
    (r'\bpatch_embed\.proj\.', 'patch_embed.projection.'),
    (r'\bblocks\.(?=\d)', 'layers.'),
    (r'(^|\bbackbone\.|\bmodule\.0\.)norm\.', r'\1ln1.'),
    (r'(\.\d+)\.norm([12])\.', r'\1.ln\2.'),
    (r'(\.\d+)\.mlp\.fc1\.', r'\1.ffn.layers.0.0.'),
    (r'(\.\d+)\.mlp\.fc2\.', r'\1.ffn.layers.1.'),
)


def name_vit_layers(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Return tensors of vision transformers, whose layers have timm's names, with mmpretrain's.

    Args:
        tensors (Dict[str, Tensor]): Of an algorithm: networks are below ``backbone.`` and
            ``encoder_k.module.0.``. Names of other networks stay.
    """
    for theirs, ours in _LAYERS:
        tensors = {re.sub(theirs, ours, name): value for name, value in tensors.items()}
    return tensors


def mlp_names(theirs: str, ours: str, layers: int = 3) -> Dict[str, str]:
    """Return the beginnings of an MLP's names in an ``nn.Sequential`` of the authors, and those in
    mmpretrain's ``NonLinearNeck``: linear layer, BatchNorm and ReLU of each layer are numbered.

    Args:
        theirs (str): Beginning of the authors' names, ``encoder.fc.``.
        ours (str): Beginning of ours, ``neck.``.
        layers (int): Largest number of layers. Defaults to 3.
    """
    names = {}
    for i in range(layers):
        names[f'{theirs}{3 * i}.'] = f'{ours}fc{i}.'
        names[f'{theirs}{3 * i + 1}.'] = f'{ours}bn{i}.'
    return names


# A DETR's names in the authors' code and in mmdet.
_DETR_PARTS = (
    ('input_proj.', 'neck.convs.0.conv.'),
    ('transformer.encoder.norm.', 'encoder.post_norm.'),
    ('transformer.decoder.norm.', 'decoder.post_norm.'),
    ('transformer.', ''),
    ('query_embed.', 'query_embedding.'),
    ('class_embed.', 'bbox_head.fc_cls.'),
    ('bbox_embed.layers.0.', 'bbox_head.reg_ffn.layers.0.0.'),
    ('bbox_embed.layers.1.', 'bbox_head.reg_ffn.layers.1.'),
    ('bbox_embed.layers.2.', 'bbox_head.fc_reg.'),
)
_DETR_LAYERS = (
    ('.self_attn.', '.self_attn.attn.'),
    ('.multihead_attn.', '.cross_attn.attn.'),
    ('.linear1.', '.ffn.layers.0.0.'),
    ('.linear2.', '.ffn.layers.1.'),
    ('.norm1.', '.norms.0.'),
    ('.norm2.', '.norms.1.'),
    ('.norm3.', '.norms.2.'),
    # Conditional DETR's decoder has a projection for each part of a query and of a key
    *(
        (f'.{short}_{part}_proj.', f'.{attention}.{part}_proj.')
        for short, attention in (('sa', 'self_attn'), ('ca', 'cross_attn'))
        for part in ('qcontent', 'qpos', 'kcontent', 'kpos', 'v', 'qpos_sine')
    ),
)


def name_detr_layers(
    tensors: Dict[str, Tensor], prefix: str = 'detector.', coco_rows: bool = True
) -> Dict[str, Tensor]:
    """Return the tensors of a detector of the authors' code (DETR, UP-DETR, DETReg, Deformable
    DETR, Conditional DETR) with mmdet's names.

    Args:
        tensors (Dict[str, Tensor]): Those of the detector are below ``prefix``; others stay.
        prefix (str): Beginning of the names. Defaults to 'detector.'.
        coco_rows (bool): Whether the rows of a class head for COCO's 91 category numbers become
            those of mmdet's 80 classes. Defaults to True.
    """
    inner = {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
    named = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    if 'transformer.level_embed' in inner:
        inner = _rename_deformable(inner, 0, 1)
    else:
        inner = {_rename_detr(name, 0, 1): value for name, value in inner.items()}
    if any(name.startswith('decoder.ref_point_head.') for name in inner):
        # Conditional DETR's attention is no nn.MultiheadAttention
        theirs, ours = r'(decoder\.layers\.\d+\.self_attn)\.attn\.', r'\1.'
        inner = {re.sub(theirs, ours, name): value for name, value in inner.items()}
    for name, value in inner.items():
        if coco_rows and _CLASSES.match(name) and len(value) in COCO_ROWS:
            value = value[COCO_ROWS[len(value)]]
        named[prefix + name] = value
    return named


_CLASSES = re.compile(r'bbox_head\.(fc_cls|cls_branches\.\d+)\.')


def authors_detr_names(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Return the tensors of mmdet's DETR or Deformable DETR with the names of the authors' code;
    the class head keeps its rows, and BatchNorm's counters are left out, as in their files.

    Args:
        tensors (Dict[str, Tensor]): All tensors of the detector.
    """
    kept = {k: v for k, v in tensors.items() if not k.endswith('num_batches_tracked')}
    if 'level_embed' in kept:
        return _rename_deformable(kept, 1, 0)
    return {_rename_detr(name, 1, 0): value for name, value in kept.items()}


def _rename_deformable(tensors: Dict[str, Tensor], source: int, target: int) -> Dict[str, Tensor]:
    """Return the tensors of a Deformable DETR with the names in the other column of its table."""
    level = re.compile((r'input_proj\.\d+\.0\.weight', r'neck\.convs\.\d+\.conv\.weight')[source])
    own = sum(
        bool(level.fullmatch(name)) and value.size(-1) == 1 for name, value in tensors.items()
    )
    table, renamed = _deformable_table(own), {}
    for name, value in tensors.items():
        if re.match(r'transformer\.decoder\.(bbox|class)_embed\.', name):
            continue  # box refinement: a second name of the head's tensors
        pairs = (pair for pair in table if name.startswith(pair[source]))
        pair = next(pairs, ('', ''))
        if source or not name.startswith('backbone.'):
            name = pair[target] + name[len(pair[source]) :]
        renamed[name] = value
    return renamed


def _deformable_table(own: int, layers: int = 13, levels: int = 8) -> List[Tuple[str, str]]:
    """Return the beginnings of a Deformable DETR's names in the authors' code and in mmdet; the
    first that fits counts.

    Args:
        own (int): Number of levels that are the backbone's.
        layers (int): Largest number of layers.
        levels (int): Largest number of levels.
    """
    table = [('backbone.0.body.', 'backbone.')]
    for i in range(levels):
        ours = f'neck.convs.{i}' if i < own else f'neck.extra_convs.{i - own}'
        table += [(f'input_proj.{i}.0.', f'{ours}.conv.'), (f'input_proj.{i}.1.', f'{ours}.gn.')]
    for i in range(layers):
        table.append((f'class_embed.{i}.', f'bbox_head.cls_branches.{i}.'))
        table += [
            (f'bbox_embed.{i}.layers.{j}.', f'bbox_head.reg_branches.{i}.{2 * j}.')
            for j in range(3)
        ]
        # the authors number norms by their definition, mmdet by their use
        for coder, norms in (('encoder', (1, 2)), ('decoder', (2, 1, 3))):
            layer = f'{coder}.layers.{i}.'
            inside = [('linear1.', 'ffn.layers.0.0.'), ('linear2.', 'ffn.layers.1.')]
            inside += [(f'norm{norm}.', f'norms.{place}.') for place, norm in enumerate(norms)]
            inside += [('self_attn.', 'self_attn.attn.')] if coder == 'decoder' else []
            table += [(f'transformer.{layer}{theirs}', layer + ours) for theirs, ours in inside]
    return table + [
        ('transformer.reference_points.', 'reference_points_fc.'),
        ('transformer.enc_output.', 'memory_trans_fc.'),
        ('transformer.enc_output_norm.', 'memory_trans_norm.'),
        ('transformer.pos_trans.', 'pos_trans_fc.'),
        ('transformer.pos_trans_norm.', 'pos_trans_norm.'),
        ('transformer.level_embed', 'level_embed'),
        ('transformer.encoder.', 'encoder.'),
        ('transformer.decoder.', 'decoder.'),
        ('query_embed.', 'query_embedding.'),
    ]


def _rename_detr(name: str, source: int, target: int) -> str:
    """Return a name in the other column of the tables; a backbone's is ``backbone.0.body.``."""
    authors = target == 0
    if name.startswith('backbone.'):
        return f'backbone.0.body.{name[9:]}' if authors else name
    for pair in _DETR_PARTS:
        if name.startswith(pair[source]) and (pair[source] or name.startswith(_CODERS)):
            name = pair[target] + name[len(pair[source]) :]
            break
    if re.search(r'\b(encoder|decoder)\.layers\.\d', name):
        for pair in _DETR_LAYERS:
            if pair[source] in name:
                return name.replace(pair[source], pair[target])
    return name


_CODERS = ('encoder.', 'decoder.')
_UNUSED_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_IDS = [i for i in range(91) if i not in _UNUSED_IDS]  # 80 classes
# by the number of outputs: softmax with no object last, and sigmoid
COCO_ROWS = {92: [*_COCO_IDS, 91], 91: _COCO_IDS}


def name_detectron2_layers(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Return tensors of ResNets and of FPNs, whose layers have detectron2's names, with those of
    mmpretrain and mmdet. Other names stay."""
    for theirs, ours in _DETECTRON2:
        tensors = {re.sub(theirs, ours, name): value for name, value in tensors.items()}
    return tensors


_DETECTRON2 = (
    (r'\bstem\.conv1\.norm\.', 'bn1.'),
    (r'\bstem\.conv1\.', 'conv1.'),
    (r'\bres([2-5])\.', lambda match: f'layer{int(match[1]) - 1}.'),
    (r'\.conv([1-3])\.norm\.', r'.bn\1.'),
    (r'\.shortcut\.norm\.', '.downsample.1.'),
    (r'\.shortcut\.', '.downsample.0.'),
    (r'\bfpn_lateral([2-5])\.', lambda match: f'lateral_convs.{int(match[1]) - 2}.'),
    (r'\bfpn_output([2-5])\.', lambda match: f'fpn_convs.{int(match[1]) - 2}.'),
    (r'(_convs\.\d\.)norm\.', r'\1bn.'),
    (r'(_convs\.\d\.)(?!bn\.)', r'\1conv.'),
)
