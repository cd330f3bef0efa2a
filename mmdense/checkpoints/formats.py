# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Recognise the format of a checkpoint, find the backbone in it, and tell whether
it holds one of our algorithms completely.

Files are recognised by their content, never by their name. A new training is one more entry in
:data:`~mmdense.checkpoints.layouts.LAYOUTS`, a network's names in another package one in
:data:`~mmdense.checkpoints.dialects.DIALECTS`. docs/checkpoints.md lists them.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import torch
from torch import Tensor

from mmdense.checkpoints.architectures import architecture, first_names, has_prefixes
from mmdense.checkpoints.dialects import find_dialect, to_our_names
from mmdense.checkpoints.layouts import find_layout
from mmdense.checkpoints.restricted_pickle import Placeholder
from mmdense.models.selfsup import AuthorsFormat, registered_algorithms
from mmdense.utils.errors import CheckpointError


@dataclass
class Recognised:
    """Describe a checkpoint.

    Attributes:
        source (str): Software or project that wrote it, in words.
        backbone (Dict[str, Tensor]): Tensors of the exported backbone, named as
            in the backbone itself; those of a network that other packages have too, as in
            mmpretrain's (a ResNet's: torchvision's).
        dropped (List[str]): Names of the tensors that are not part of it.
        meta (dict): Facts about the run from the file.
        algorithm (Dict[str, Tensor], optional): All tensors of the algorithm,
            named as in ours, where the file has more of it than a backbone.
        algorithm_type (str): Which class of ours that is, where it is known.
        network (str): Network of the training that the backbone is of, in words, such as
            'teacher'; '' where the file has only one.
        license (str): License of the weights that were released in this format, where it forbids
            commercial use.
        detector (Dict[str, Tensor]): Tensors of the complete detector that the backbone is of,
            named as in mmdet; {} without one.
    """

    source: str
    backbone: Dict[str, Tensor]
    dropped: List[str] = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    algorithm: Optional[Dict[str, Tensor]] = None
    algorithm_type: str = ''
    network: str = ''
    license: str = ''
    detector: Dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return f'{architecture(self.backbone)} written by {self.writer}'

    @property
    def writer(self) -> str:
        """Return the source, and in brackets the network that was taken of several."""
        return f'{self.source} ({self.network})' if self.network else self.source


def recognise(checkpoint: Any, name: str = 'checkpoint', prefix: Optional[str] = None):
    """Find the backbone in a loaded checkpoint.

    Args:
        checkpoint (Any): As :func:`mmdense.checkpoints.read_checkpoint` gives it.
        name (str): Of the file, for messages.
        prefix (str, optional): Take the tensors below this prefix, whatever
            the file declares as its product; '' takes them all.

    Returns:
        Recognised: The source, and the backbone.

    Raises:
        CheckpointError: When there are no tensors, none below ``prefix``, or
            without one when the file is of another task or of no known
            format.
    """
    tensors = _state_dict(checkpoint)
    if not tensors:
        kind = type(checkpoint)
        if issubclass(kind, Placeholder):  # a model that was pickled as a whole
            raise CheckpointError(
                f'{name} holds an object of {kind.__module__}.{kind.__name__}, not tensors: load '
                'it by torch.load(FILE, weights_only=False), if you trust it, and save its state '
                'dict alone'
            )
        raise CheckpointError(f'{name} holds no tensors by name: it is not a model checkpoint')
    about = checkpoint if isinstance(checkpoint, dict) else {}
    meta = about.get('meta')
    meta = dict(meta) if isinstance(meta, dict) else {}
    author = about.get('author', about.get('__author__'))
    if isinstance(author, str):
        meta.setdefault('author', author)
    levels = _unwrapped(tensors)
    if prefix is not None:
        found = _below(prefix.rstrip('.'), levels, meta, name)
    else:
        found = _first_format(levels, meta) or _plain(levels[-1], meta)
    if found is None:
        raise CheckpointError(_describe_refusal(levels[-1], meta, name))
    _name_backbone(found)
    return found


def _first_format(levels: List[Dict[str, Tensor]], meta: dict) -> Optional[Recognised]:
    for level in levels:
        for recogniser in _FORMATS:
            found = recogniser(level, meta)
            if found is not None:
                return found
    return None


def _name_backbone(found: Recognised) -> None:
    """Take off DataParallel's ``module.`` and its like, give the tensors our names, and leave out
    the classifier of a network in another package's names."""
    backbone = found.backbone
    while backbone and first_names(backbone) in (['module'], ['weights'], ['state_dict']):
        backbone = {key.partition('.')[2]: value for key, value in backbone.items()}
    numbered_once = {_CHUNK.sub(r'\1', key): value for key, value in backbone.items()}
    if len(numbered_once) == len(backbone):
        backbone = numbered_once
    if find_dialect(backbone) is not None:
        renamed = to_our_names(backbone)
        heads = [key for key in renamed if key in backbone and _HEAD.match(key)]
        found.dropped += heads
        backbone = {key: value for key, value in renamed.items() if key not in heads}
    found.backbone = backbone


# DINOv2's training numbers blocks twice: by the part that a process holds, and in the network
_CHUNK = re.compile(r'(?<=^blocks\.)\d+\.(\d+\.(?:norm|attn|mlp|ls)\d?\.)')


def check_finite(tensors: Dict[str, Tensor], name: str) -> None:
    """Refuse tensors that would turn every loss into NaN.

    Args:
        tensors (Dict[str, Tensor]): Tensors that are to be loaded.
        name (str): Name of the file, for the message.

    Raises:
        CheckpointError: With the first tensor that is not finite.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f'{name} holds NaN or infinite numbers, in {key} first: the run that wrote it had '
                'diverged, or the file is damaged. Use an earlier checkpoint'
            )


def _state_dict(checkpoint: Any) -> Dict[str, Tensor]:
    """Return the named tensors of a loaded file.

    Those of its state dict; where nothing in the file is called so, all that are in it, however
    deep, but for those of an optimizer and for single values of a training.
    """
    if not isinstance(checkpoint, (dict, list, tuple)):
        return {}
    if isinstance(checkpoint, dict):
        for key in _STATE_DICTS:
            if isinstance(checkpoint.get(key), dict):
                return dict(_flatten(checkpoint[key]))
    tensors = dict(_flatten(checkpoint))
    # a loss or a temperature, next to what holds the weights
    deep = any('.' in key for key in tensors)
    return {k: v for k, v in tensors.items() if not deep or '.' in k or v.dim()}


_STATE_DICTS = ('state_dict', 'model', 'model_state_dict')
_NO_WEIGHTS = re.compile(r'optim|scheduler|scaler|^rng|^amp$|^loops$|^callbacks$', re.IGNORECASE)
_DEEPEST = 12  # dicts within dicts
# Wrappers around any part of a network: of torch.compile, FSDP, activation checkpointing, Fabric.
_WRAPPERS = re.compile(
    r'(?<![^.])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module)\.'
)


def _flatten(
    node: Any, path: str = '', seen: Optional[Set[int]] = None
) -> Iterator[Tuple[str, Tensor]]:
    """Yield the tensors of nested dicts and lists by their dotted names, each dict once."""
    seen = set() if seen is None else seen
    seen.add(id(node))
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if not isinstance(key, (str, int)):
            continue
        name, tensor = f'{path}.{key}' if path else str(key), _tensor(value)
        if tensor is not None:
            yield _WRAPPERS.sub('', name), tensor
        elif (
            isinstance(value, (dict, list, tuple))
            and id(value) not in seen
            and not _NO_WEIGHTS.search(str(key))
            and name.count('.') < _DEEPEST
        ):
            yield from _flatten(value, name, seen)


def _tensor(value: Any) -> Optional[Tensor]:
    """Return a tensor, also from a numpy array; None from anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiu':
        return torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


_LISTS = ('layers', 'features', 'stages', 'blocks')  # all that some networks have


def _unwrapped(tensors: Dict[str, Tensor]) -> List[Dict[str, Tensor]]:
    """Return the tensors, and again without each wrapper that is around all of them:
    DistributedDataParallel's ``module.``, a training framework's ``model.``."""
    levels = [tensors]
    while True:
        (part, *others) = first_names(levels[-1])
        if others or re.fullmatch(r'layer\d|res\d', part):
            return levels
        inner = {key[len(part) + 1 :]: value for key, value in levels[-1].items()}
        if not any('.' in key for key in inner):  # a single layer's weight and bias
            return levels
        numbered = all(name.isdigit() for name in first_names(inner))
        if numbered and part in _LISTS and find_dialect(inner) is None:
            return levels
        levels.append(inner)


def _split(source: str, tensors: Dict[str, Tensor], prefix: str, meta: dict, **whole) -> Recognised:
    """Split tensors into the backbone below a prefix and the rest."""
    return Recognised(
        source=source,
        backbone={k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)},
        dropped=[k for k in tensors if not k.startswith(prefix)],
        meta=meta,
        **whole,
    )


def _below(prefix: str, levels: List[Dict[str, Tensor]], meta: dict, name: str) -> Recognised:
    """Take the tensors below the prefix that the caller asks for."""
    source = f'an unnamed source (prefix={prefix!r}){_name_author(meta)}'
    if not prefix:
        return _split(source, levels[-1], '', meta)
    for level in levels:
        inner = {k[: k.index(f'.{prefix}.') + 1] for k in level if f'.{prefix}.' in k}
        whole = inner.pop() if len(inner) == 1 and not has_prefixes(level, f'{prefix}.') else ''
        found = _split(source, level, f'{whole}{prefix}.', meta)
        if found.backbone:
            return found
    raise CheckpointError(
        f'{name} has nothing below {prefix!r}; it holds {", ".join(first_names(levels[-1])[:8])}.'
        f'{_suggest_prefix(levels[-1])}'
    )


def _rename(tensors: Dict[str, Tensor], names: Dict[str, str]) -> Dict[str, Tensor]:
    """Replace the beginnings of names; a name with none of them stays."""
    renamed = {}
    for key, value in tensors.items():
        for theirs, ours in names.items():
            if key.startswith(theirs):
                key = ours + key[len(theirs) :]
                break
        renamed[key] = value
    return renamed


def _mmdense(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise ours, which declare their product; an exported backbone has no prefix."""
    own = meta.get('mmdense')
    if not isinstance(own, dict):
        return None
    product, kind = own.get('product', ''), str(own.get('algorithm', ''))
    whole = dict(algorithm=tensors, algorithm_type=kind) if product else {}
    found = _split(
        f'mmdense {kind}'.strip(), tensors, f'{product}.' if product else '', meta, **whole
    )
    if has_prefixes(found.backbone, 'backbone.', 'bbox_head.'):  # a complete detector
        found.detector = found.backbone
        inner = _split(found.source, found.detector, 'backbone.', meta)
        found.backbone = inner.backbone
        found.dropped += [f'{product}.{key}' if product else key for key in inner.dropped]
    return found if found.backbone else None


def _authors(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a training checkpoint that an algorithm's own authors wrote."""
    for kind in registered_algorithms():
        for format in kind.AUTHORS:
            if format.source == 'mmpretrain' or not has_prefixes(tensors, *format.parts):
                continue
            found = _split(format.source, tensors, format.product, meta, license=format.license)
            if not format.product:
                found = _without_heads(found)
            if not format.complete:
                return _without_classifier(found, format.product.rstrip('.'))
            once = {k: v for k, v in tensors.items() if not k.startswith(format.duplicates)}
            found.algorithm = kind.complete_authors_state(_rename(once, format.names))
            found.algorithm_type = kind.__name__
            found.network = format.network
            found.detector = {
                k[9:]: v for k, v in found.algorithm.items() if k.startswith('detector.')
            }
            _without_projector(found, format)
            return found
    return None


def _without_projector(found: Recognised, format: AuthorsFormat) -> None:
    """Leave out of the backbone what is part of another network of ours: a projector in the
    place of the classifier."""
    ours = format.names.get(format.product, format.product)
    for key in list(found.backbone):
        (name,) = _rename({format.product + key: found.backbone[key]}, format.names)
        if not name.startswith(ours):
            found.dropped.append(format.product + key)
            del found.backbone[key]


def _openmmlab(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise mmpretrain's and mmselfsup's algorithms, and mmpretrain's classifiers."""
    parts = set(first_names(tensors))
    if 'backbone' not in parts or not parts <= _MMPRETRAIN or _other_scope(meta):
        return None
    whole = {}
    if parts - {'backbone', 'head', 'data_preprocessor'}:  # what a classifier has
        whole = dict(algorithm=tensors, algorithm_type=_name_of_mmpretrain(parts))
    return _split('mmpretrain', tensors, 'backbone.', meta, **whole)


def _name_of_mmpretrain(parts: Set[str]) -> str:
    """Return the algorithm that such parts of mmpretrain's tensors belong to, or ''."""
    for kind in registered_algorithms():
        for format in kind.AUTHORS:
            if format.source == 'mmpretrain' and parts >= set(format.parts):
                return kind.__name__
    return ''


_MMPRETRAIN = {'backbone', 'neck', 'head', 'data_preprocessor'} | {
    *('encoder_k', 'queue', 'queue_ptr', 'queue2', 'queue2_ptr'),
    *('online_net', 'target_net', 'momentum_encoder', 'teacher'),
    *('target_generator', 'tokenizer', 'enc_dec_norms', 'enc_dec_projectors', 'mask_tokens'),
}


def _other_scope(meta: dict) -> str:
    """Return the package of OpenMMLab that a run was of, where it is for another task."""
    match = re.search(r"^default_scope = '(\w+)'", str(meta.get('cfg')), re.MULTILINE)
    scope = match.group(1) if match else ''
    return '' if scope in ('mmdense', 'mmpretrain', 'mmselfsup', 'mmcls') else scope


def _layout(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a training of other code; its classifier's place may have the head."""
    found = None if _other_scope(meta) else find_layout(tensors)
    if found is None:
        return None
    layout, prefix = found
    about = dict(network=layout.network, license=_released_license(layout.source))
    split = _split(layout.source, tensors, prefix, meta, **about)
    return _without_classifier(split, prefix.rstrip('.'))


def _released_license(source: str) -> str:
    """Return the license of the weights that the authors of a format released, a part of a training
    checkpoint too; '' where it does not forbid commercial use."""
    formats = (format for kind in registered_algorithms() for format in kind.AUTHORS)
    return next((format.license for format in formats if format.source == source), '')


def _vissl(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise VISSL's: the trunk is kept."""
    found = (match.group() for match in map(_TRUNK.match, tensors) if match)
    prefixes = {prefix for prefix in found if '.loss.' not in prefix}  # a momentum encoder
    return _split('VISSL', tensors, prefixes.pop(), meta) if len(prefixes) == 1 else None


_TRUNK = re.compile(r'(?:.*\.)?_feature_blocks\.')


def _other_names(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a network alone in the names of another package, in detectron2's for instance.
    The order of its input, RGB or BGR, is left as it is."""
    dialect = find_dialect(tensors)
    if dialect is None:
        return None
    return _split(f'{dialect.package}{_name_author(meta)}', tensors, '', meta)


def _plain(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a backbone alone, perhaps with torchvision's classifier (``fc``) or the heads of a
    training: torchvision's, or taken out of a training checkpoint by whomever."""
    found = _split('', tensors, '', meta)
    if has_prefixes(tensors, 'conv1.', 'layer1.') or has_prefixes(tensors, 'patch_embed.'):
        found = _without_heads(found)
    several = {match.group(1) for match in map(_FIRST_LAYERS.match, found.backbone) if match}
    if several - {''} or any(key.startswith(_NO_BACKBONE) for key in found.backbone):
        return None
    plain = has_prefixes(found.backbone, 'conv1.', 'layer1.')
    found.source = f'{"torchvision" if plain else "an unnamed source"}{_name_author(meta)}'
    return _without_classifier(found)


def _without_heads(found: Recognised) -> Recognised:
    """Move the heads next to a network whose own names have no prefix to what is dropped."""
    heads = [key for key in found.backbone if _HEAD.match(key)]
    for key in heads:
        del found.backbone[key]
    found.dropped += heads
    return found


def _without_classifier(found: Recognised, path: str = '') -> Recognised:
    """Move torchvision's classifier from the backbone to what is dropped."""
    classifier = [key for key in found.backbone if key.startswith('fc.')]
    for key in classifier:
        del found.backbone[key]
        found.dropped.append(f'{path}.{key}' if path else key)
    return found


def _name_author(meta: dict) -> str:
    """Return the author's name that a file gives, in brackets."""
    author = ' '.join(str(meta.get('author', '')).split())[:40]
    return f' ({author})' if author else ''


# Heads of a training next to a backbone whose own names have no prefix.
_HEAD = re.compile(
    r'(projection_head|projection|prototypes|projector|predictor|heads?|classifier|pooler|'
    r'head_dist|mask_token|embeddings\.(mask_token|position_ids)|decoder_\w+|fc|stem\.fc|proj|'
    r'_fc)\b'
)

# Parts that hold a backbone, or are next to one in the checkpoints of trainings.
_NO_BACKBONE = (
    *('backbone', 'module.', 'encoder_', 'encoder.', 'queue', 'neck', 'head', 'projector'),
    *('predictor', 'grouping', 'center', 'teacher', 'student', 'rpn', 'roi_head', 'proposal_'),
    *('bbox_head', 'decode_head', 'auxiliary_head', 'model.'),
)

_FORMATS = (_mmdense, _authors, _layout, _vissl, _other_names, _openmmlab)


def _describe_refusal(tensors: Dict[str, Tensor], meta: dict, name: str) -> str:
    """Say in one line why a file is not taken."""
    tasks = sorted({part for key in tensors for part in key.split('.')} & _TASKS)
    scope = _other_scope(meta)
    if tasks or scope:
        task = f' ({", ".join(tasks)})' if tasks else f' of {scope}'
        return (
            f'{name} is a checkpoint of another task{task}, not of pretraining.'
            f'{_suggest_prefix(tensors)}, deliberately'
        )
    return (
        f'{name} holds more than a backbone, and its format is not known yet; it holds '
        f'{", ".join(first_names(tensors)[:8])}.{_suggest_prefix(tensors)}'
    )


_TASKS = {
    *('rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'panoptic_head', 'semantic_head'),
    *('decode_head', 'auxiliary_head', 'cls_head', 'keypoint_head', 'query_embedding'),
    *('rpn', 'roi_heads', 'proposal_generator', 'sem_seg_head'),  # torchvision's, detectron2's
}


def _suggest_prefix(tensors: Dict[str, Tensor]) -> str:
    """Suggest prefixes of backbones, by the names of their first layers or by their own."""
    for pattern in (_FIRST_LAYERS, _BACKBONES):
        found = {match.group(1) for match in map(pattern.match, tensors) if match}
        if found:
            break
    named = sorted(repr(prefix.rstrip('.')) for prefix in found)[:4]
    if not named:
        return " Say with prefix= which part to take ('' for all of it)"
    owner = 'its' if len(named) == 1 else 'a'
    return f' prefix={" or prefix=".join(named)} takes {owner} backbone'


_FIRST_LAYERS = re.compile(r'((?:.*?\.)?)(?:layer1\.0\.conv1|res2\.0\.conv1|patch_embed)\.')

_BACKBONES = re.compile(r'((?:.*?\.)?backbone)\.')
