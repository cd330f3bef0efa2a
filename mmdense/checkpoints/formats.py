# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Knows who wrote a checkpoint and where in it the backbone is.

Files are recognised by what is in them, never by their name. A new format is
one more function in ``_FORMATS``.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from torch import Tensor

from mmdense.utils.errors import CheckpointError


@dataclass
class Recognised:
    """A checkpoint, understood.

    Attributes:
        writer (str): Who wrote it, for people.
        backbone (Dict[str, Tensor]): The product's tensors, named as in the
            backbone itself.
        dropped (List[str]): Names of the tensors that are not part of it.
        meta (dict): What the writer says about the run.
    """

    writer: str
    backbone: Dict[str, Tensor]
    dropped: List[str] = field(default_factory=list)
    meta: dict = field(default_factory=dict)


def recognise(checkpoint: Any, name: str = 'checkpoint', prefix: Optional[str] = None):
    """Finds the backbone in a loaded checkpoint.

    Args:
        checkpoint (Any): As :func:`mmdense.checkpoints.read_checkpoint` gives it.
        name (str): Of the file, for messages.
        prefix (str, optional): Take the tensors below this prefix, whatever
            the writer says is the product; '' takes them all.

    Returns:
        Recognised: Who wrote it, and the backbone.

    Raises:
        CheckpointError: When there are no tensors, none below ``prefix``, or
            without one when no known writer's file looks like this.
    """
    tensors = _state_dict(checkpoint)
    if not tensors:
        raise CheckpointError(f'{name} holds no tensors by name: it is not a model checkpoint')
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    parts = sorted({key.split('.')[0] for key in tensors})
    if prefix is not None:
        prefix = prefix.rstrip('.')
        found = _split('a given prefix', tensors, prefix and prefix + '.', meta)
        if not found.backbone:
            raise CheckpointError(f'{name} has nothing below {prefix!r}; it holds {parts}')
        return found
    for recogniser in _FORMATS:
        found = recogniser(tensors, meta)
        if found is not None:
            return found
    raise CheckpointError(
        f'{name} holds more than a backbone, and its writer is not known yet: say with prefix= '
        f"which part to take ('' for all of it); it holds {parts}"
    )


def _state_dict(checkpoint: Any) -> Dict[str, Tensor]:
    """The named tensors, without DistributedDataParallel's ``module.``."""
    if not isinstance(checkpoint, dict):
        return {}
    tensors = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    if not isinstance(tensors, dict):
        return {}
    tensors = {k: _tensor(v) for k, v in tensors.items() if isinstance(k, str)}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    if tensors and all(key.startswith('module.') for key in tensors):
        tensors = {key[len('module.') :]: value for key, value in tensors.items()}
    return tensors


def _tensor(value: Any) -> Optional[Tensor]:
    """A tensor, also from a numpy array; None from anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiu':
        return torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


def _split(writer: str, tensors: Dict[str, Tensor], prefix: str, meta: dict) -> Recognised:
    return Recognised(
        writer=writer,
        backbone={k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)},
        dropped=[k for k in tensors if not k.startswith(prefix)],
        meta=meta,
    )


def _mmdense(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """Ours say what the product is; an exported backbone has no prefix."""
    own = meta.get('mmdense')
    if not isinstance(own, dict):
        return None
    product = own.get('product', '')
    writer = f'mmdense {own.get("algorithm", "")}'.strip()
    return _split(writer, tensors, f'{product}.' if product else '', meta)


def _openmmlab(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """mmpretrain, mmselfsup 1.x and other OpenMMLab models."""
    if not any(key.startswith('backbone.') for key in tensors):
        return None
    return _split('mmpretrain', tensors, 'backbone.', meta)


def _pixpro(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """The authors' of PixPro: the student is kept, named as torchvision's."""
    if not _has(tensors, 'encoder.', 'encoder_k.', 'projector.linear1.'):
        return None
    return _split('PixPro', tensors, 'encoder.', meta)


def _slotcon(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """The authors' of SlotCon: the teacher is kept, named as torchvision's."""
    if not _has(tensors, 'encoder_k.', 'grouping_k.slot_embed.'):
        return None
    return _split('SlotCon', tensors, 'encoder_k.', meta)


def _detectron2(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """A ResNet in detectron2's names, DetCo's authors' for instance. Its RGB or
    BGR order is left as it is."""
    if not _has(tensors, 'stem.conv1.', 'res2.'):
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
    return Recognised('detectron2', renamed, dropped, meta)


_DETECTRON2 = re.compile(r'(?:stem|res(\d)\.(\d+))\.(conv\d|shortcut)(\.norm)?\.(\w+)$')


def _has(tensors: Dict[str, Tensor], *prefixes: str) -> bool:
    """Whether there is a tensor below each of the prefixes."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes)


def _plain(tensors: Dict[str, Tensor], meta: dict) -> Optional[Recognised]:
    """A backbone alone, perhaps with a classifier (``fc``)."""
    if any(key.startswith(_NO_BACKBONE) for key in tensors):
        return None
    return _split('a plain backbone', tensors, '', meta)


# What pretraining algorithms hold beside a backbone, or around it.
_NO_BACKBONE = (
    'module.',
    'encoder_',
    'queue',
    'neck',
    'head',
    'projector',
    'predictor',
    'grouping',
    'center',
)

_FORMATS = (_mmdense, _openmmlab, _pixpro, _slotcon, _detectron2, _plain)
