# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Recognise the format of a checkpoint, find the backbone in it, and tell whether
it holds one of our algorithms completely.

Files are recognised by their content, never by their name. A new format is
one more function in ``_FORMATS``. docs/checkpoints.md lists them.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Set

import numpy as np
import torch
from torch import Tensor

from mmdense.checkpoints.architectures import architecture, first_names, has_prefixes
from mmdense.models.selfsup import registered_algorithms
from mmdense.utils.errors import CheckpointError


@dataclass
class Recognised:
    """Describe a checkpoint.

    Attributes:
        source (str): Software or project that wrote it, in words.
        backbone (Dict[str, Tensor]): Tensors of the exported backbone, named as
            in the backbone itself.
        dropped (List[str]): Names of the tensors that are not part of it.
        meta (dict): Facts about the run from the file.
        algorithm (Dict[str, Tensor], optional): All tensors of the algorithm,
            named as in ours, where the file has more of it than a backbone.
        algorithm_type (str): Which class of ours that is, where it is known.
    """

    source: str
    backbone: Dict[str, Tensor]
    dropped: List[str] = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    algorithm: Optional[Dict[str, Tensor]] = None
    algorithm_type: str = ''

    def __str__(self) -> str:
        return f'{architecture(self.backbone)} written by {self.source}'


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
        raise CheckpointError(f'{name} holds no tensors by name: it is not a model checkpoint')
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, dict) else {}
    author = checkpoint.get('author', checkpoint.get('__author__'))
    if isinstance(author, str):
        meta.setdefault('author', author)
    levels = _unwrapped(tensors)
    if prefix is not None:
        return _below(prefix.rstrip('.'), levels, meta, name)
    for level in levels:
        for recogniser in _FORMATS:
            found = recogniser(level, meta)
            if found is not None:
                return found
    found = _plain(levels[-1], meta)
    if found is not None:
        return found
    raise CheckpointError(_describe_refusal(levels[-1], meta, name))


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
    """Return the named tensors of a loaded file."""
    if not isinstance(checkpoint, dict):
        return {}
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    found = {}
    for key, value in checkpoint.items():
        # several networks, each in a dict of its own
        inner = value if isinstance(value, dict) else {None: value}
        for sub, tensor in inner.items():
            tensor = _tensor(tensor)
            if tensor is not None and isinstance(key, str) and isinstance(sub, (str, type(None))):
                found[key if sub is None else f'{key}.{sub}'] = tensor
    return found


def _tensor(value: Any) -> Optional[Tensor]:
    """Return a tensor, also from a numpy array; None from anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiu':
        return torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


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
        found = _split(source, level, f'{prefix}.', meta)
        if found.backbone:
            renamed = _detectron2(found.backbone, meta)
            if renamed is not None:
                found.backbone = renamed.backbone
                found.dropped += [f'{prefix}.{key}' for key in renamed.dropped]
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
    return found if found.backbone else None


def _authors(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a training checkpoint that an algorithm's own authors wrote."""
    for kind in registered_algorithms():
        for format in kind.AUTHORS:
            if format.source == 'mmpretrain' or not has_prefixes(tensors, *format.parts):
                continue
            once = {k: v for k, v in tensors.items() if not k.startswith(format.duplicates)}
            state = kind.complete_authors_state(_rename(once, format.names))
            name = kind.__name__
            return _split(
                format.source, tensors, format.product, meta, algorithm=state, algorithm_type=name
            )
    return None


def _openselfsup_moco(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise OpenSelfSup's MoCo: the online network is kept."""
    if not has_prefixes(tensors, 'encoder_q.0.', 'encoder_k.0.'):
        return None
    return _split('OpenSelfSup MoCo', tensors, 'encoder_q.0.', meta)


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


def _moco(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """The authors' of MoCo: the student is kept, named as torchvision's; its
    classifier's place, ``fc``, has the head."""
    if not has_prefixes(tensors, 'encoder_q.conv1.', 'encoder_q.layer1.', 'queue'):
        return None
    version = 2 if has_prefixes(tensors, 'encoder_q.fc.0.') else 1
    return _without_classifier(_split(f'MoCo v{version}', tensors, 'encoder_q.', meta), 'encoder_q')


def _detectron2(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a ResNet in detectron2's names, DetCo's authors' for instance. The RGB or
    BGR order is left as it is."""
    if not has_prefixes(tensors, 'stem.conv1.', 'res2.'):
        return None
    renamed, dropped = {}, []
    for key, value in tensors.items():
        match = _DETECTRON2.match(key)
        if match is None:
            dropped.append(key)
            continue
        stage, block, conv, norm, kind = match.groups()
        prefix = f'layer{int(stage) - 1}.{block}.' if stage else ''
        if conv == 'shortcut':
            name = 'downsample.1' if norm else 'downsample.0'
        else:
            name = conv.replace('conv', 'bn') if norm else conv
        renamed[f'{prefix}{name}.{kind}'] = value
    return Recognised(f'detectron2{_name_author(meta)}', renamed, dropped, meta)


_DETECTRON2 = re.compile(r'(?:stem|res(\d)\.(\d+))\.(conv\d|shortcut)(\.norm)?\.(\w+)$')


def _plain(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Recognise a backbone alone, perhaps with torchvision's classifier (``fc``):
    torchvision's, or taken out of a training checkpoint by whomever."""
    if any(key.startswith(_NO_BACKBONE) for key in tensors):
        return None
    source = 'torchvision' if has_prefixes(tensors, 'conv1.', 'layer1.') else 'an unnamed source'
    return _without_classifier(_split(f'{source}{_name_author(meta)}', tensors, '', meta))


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


# Parts that hold a backbone, or are next to one in the checkpoints of trainings.
_NO_BACKBONE = (
    *('backbone', 'module.', 'encoder_', 'encoder.', 'queue', 'neck', 'head', 'projector'),
    *('predictor', 'grouping', 'center', 'teacher', 'student', 'rpn', 'roi_head', 'proposal_'),
    *('bbox_head', 'decode_head', 'auxiliary_head', 'model.'),
)

_FORMATS = (_mmdense, _authors, _openselfsup_moco, _moco, _detectron2, _openmmlab)


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
