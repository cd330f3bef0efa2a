# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Write backbones, and convert any checkpoint."""

import io
import json
import os
import pickle
from typing import Dict, Optional, Tuple, Union

import safetensors.torch
import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

import mmdense
from mmdense.models.utils.authors_names import authors_detr_names
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.files import atomic_write, report_write_errors

from .architectures import (
    LAST_STAGE,
    RESNET,
    architecture,
    count_by_part,
    first_names,
    translate_layers,
    with_article,
)
from .dialects import dialect_of, to_names_of
from .formats import Recognised, check_finite, recognise
from .model_config import saved_backbone_config
from .networks import Network, build_empty, find_network


def describe_product(algorithm) -> dict:
    """Describe a checkpoint of ours, for ``meta['mmdense']``.

    Args:
        algorithm (SelfSupervisor): The model of the run.

    Returns:
        dict: ``version``, ``algorithm``, and ``product``, the path of the
        module that the run exports.
    """
    return dict(
        version=mmdense.__version__,
        algorithm=type(algorithm).__name__,
        product=algorithm.product,
    )


def save_backbone(
    tensors: Dict[str, Tensor], path: str, product: str = '', cfg: str = '', **about
) -> None:
    """Write a backbone alone, completely or not at all.

    Args:
        tensors (Dict[str, Tensor]): Named as in the backbone.
        path (str): File to write: in the format safetensors if it ends so, else as ``torch.save``
            writes it. It loads by ``SelfSupPretrained``, and by MMEngine's ``Pretrained`` without
            a prefix.
        product (str): Path of the backbone, if the tensors are those of a
            complete algorithm. Defaults to '': they are the backbone's.
        cfg (str): Text of the run's config, which tells what backbone it is.
            Defaults to '': its tensors do.
        about: Goes into ``meta['mmdense']``. ``backbone`` there is the backbone's
            config, of plain values, see :func:`saved_model_config`.

    Raises:
        MMDenseError: The file cannot be written.
    """
    meta = dict(mmdense=dict(about, product=product), **(dict(cfg=cfg) if cfg else {}))
    # Contiguous copies: a view would be saved with all of its storage.
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    if path.endswith('.safetensors'):
        metadata = dict(format='pt', mmdense=json.dumps(meta))
        content = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    else:
        buffer = io.BytesIO()  # writing itself, torch.save would hide what the disk says
        torch.save(dict(meta=meta, state_dict=tensors), buffer)
        content = buffer.getbuffer()
    _write(content, path)


def _save_for_detectron2(tensors: Dict[str, Tensor], path: str) -> None:
    """Write a pickle of arrays, as detectron2 reads it from a file that ends in '.pkl'. The tensors
    have its names, of a network without the detector around it."""
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    arrays = {key: value.detach().cpu().numpy() for key, value in tensors.items()}
    about = dict(__author__='mmdense', matching_heuristics=True)
    _write(pickle.dumps(dict(model=arrays, **about)), path)


def _write(content: Union[bytes, memoryview], path: str) -> None:
    with report_write_errors(path), atomic_write(path) as part, open(part, 'wb') as file:
        file.write(content)


def convert_checkpoint(
    checkpoint: str,
    path: str,
    prefix: Optional[str] = None,
    whole: bool = False,
    names: str = 'mmpretrain',
) -> str:
    """Write the backbone of a checkpoint in a form that loads anywhere:
    ``dict(meta, state_dict)``, in mmpretrain's names, which are torchvision's for a ResNet.

    Args:
        checkpoint (str): Path or URL of any that :func:`recognise` knows.
        path (str): File to write, see :func:`save_backbone`; in detectron2's names it is one of
            its pickles, and must end in '.pkl'.
        prefix (str, optional): Take the tensors below this prefix instead.
        whole (bool): Write the complete algorithm in our names instead, to
            continue training with. Defaults to False.
        names (str): Package in whose names a backbone is written, of
            :data:`~mmdense.checkpoints.dialects.DIALECTS`. Defaults to 'mmpretrain'.

    Returns:
        str: One line: the part that was mapped, and how many tensors were
        mapped, dropped and missed.

    Raises:
        CheckpointError: When ``checkpoint`` cannot be read, has no backbone
            or no complete algorithm, misses tensors of its network or holds
            numbers that are not finite, the package has other tensors in such
            a network, or ``path`` is the same file.
    """
    if os.path.exists(checkpoint) and os.path.exists(path) and os.path.samefile(checkpoint, path):
        raise CheckpointError(f'{path} is the checkpoint itself: name another file to write')
    if names == 'detectron2' and not path.endswith('.pkl'):
        raise InputError(f'{path} must end in .pkl, or detectron2 reads it as another format')
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    found = recognise(content, name=checkpoint, prefix=prefix)
    about = dict(found.meta.get('mmdense') or {}, writer=found.source)
    for key in ('epoch', 'iter'):
        if key in found.meta:
            about[key] = found.meta[key]
    about.pop('product', None)
    network, compared = _compare(found, checkpoint, prefix)
    if whole:
        tensors, part, dropped = found.algorithm, 'the complete algorithm', []
        about.update(_name_algorithm(found, checkpoint))
    else:
        tensors, part, dropped = found.backbone, str(found), found.dropped
        if network and not part.startswith(with_article(network.name)):
            part = f'{with_article(network.name)} written by {found.writer}'
        about.pop('backbone', None)
        backbone = saved_backbone_config(found.meta) if prefix is None else None
        about.update(dict(backbone=backbone) if backbone else {})
    check_finite(tensors, checkpoint)
    if not whole and network and network.config:  # a deep stem in another package's names
        tensors = translate_layers(tensors, build_empty(network.config).state_dict())
    if names != 'mmpretrain':
        tensors = _name_as(names, tensors, f'{checkpoint} ({found})')
        dropped = dropped + [key for key in found.backbone if key.startswith(_OTHER_NORMS)]
    line = f'{len(tensors)} tensors of {part} mapped, {compared}, {len(dropped)} dropped'
    if dropped:
        line += f' ({count_by_part(dropped)})'
    if names == 'detectron2':
        _save_for_detectron2(tensors, path)
    else:
        save_backbone(tensors, path, **about)
    return f'{path}: {line}'


def convert_detector(checkpoint: str, path: str, names: str = 'mmdet') -> str:
    """Write the complete detector of a checkpoint, with its class head.

    Args:
        checkpoint (str): Path or URL: a run that pretrained a detector, its product, or a file of
            the authors of UP-DETR, DETR or Conditional DETR. A class head of theirs for COCO's 91
            category numbers gets the rows of mmdet's 80 classes.
        path (str): File to write: ``dict(meta, state_dict)``, see :func:`save_backbone`, in
            mmdet's names; ``dict(model)`` in the authors'.
        names (str): 'mmdet', or 'detr' for the names of the authors of DETR. Defaults to 'mmdet'.

    Returns:
        str: One line: what was written.

    Raises:
        CheckpointError: ``checkpoint`` cannot be read, holds no detector or numbers that are not
            finite, or ``path`` is the same file.
        InputError: ``names`` are no such names.
    """
    if names not in ('mmdet', 'detr'):
        raise InputError(f"names must be 'mmdet' or 'detr', got {names!r}")
    if os.path.exists(checkpoint) and os.path.exists(path) and os.path.samefile(checkpoint, path):
        raise CheckpointError(f'{path} is the checkpoint itself: name another file to write')
    content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    found = recognise(content, name=checkpoint)
    tensors = found.detector
    if not tensors:
        raise CheckpointError(f'{checkpoint} ({found}) holds no detector, nothing was written')
    check_finite(tensors, checkpoint)
    if names == 'mmdet':
        save_backbone(tensors, path, writer=found.source)
    else:
        tensors = authors_detr_names(tensors)
        buffer = io.BytesIO()
        torch.save(dict(model={k: v.detach().cpu().clone() for k, v in tensors.items()}), buffer)
        _write(buffer.getbuffer(), path)
    return (
        f'{path}: {len(tensors)} tensors of the detector written by {found.writer}, in the names '
        f'of {names}'
    )


# Norms of a ConvNeXt's maps but the last, which only OpenMMLab's has.
_OTHER_NORMS = ('norm0.', 'norm1.', 'norm2.')


def _name_as(package: str, tensors: Dict[str, Tensor], name: str) -> Dict[str, Tensor]:
    """Name a backbone's tensors as a package does; all of them.

    Raises:
        CheckpointError: When the package has no name for one; ``name`` is the file's.
    """
    dialect = dialect_of(package, tensors)
    if dialect is None:
        raise CheckpointError(
            f'{name}: the names of such a network in {package} are not known: nothing was '
            "written. Leave names='mmpretrain'"
        )
    rest = {key: value for key, value in tensors.items() if not key.startswith(_OTHER_NORMS)}
    return to_names_of(dialect, rest)


def _compare(
    found: Recognised, checkpoint: str, prefix: Optional[str]
) -> Tuple[Optional[Network], str]:
    """Compare a backbone with the network that it belongs to; return both, the result in words.

    Raises:
        CheckpointError: The file lacks tensors of that network; or nothing is known of its network.
    """
    network = find_network(found.backbone, found.meta if prefix is None else None)
    number = f'{checkpoint}: {len(found.backbone)} tensors of {found}'
    if network is None:
        kind = architecture(found.backbone)
        unusual = kind.kind == LAST_STAGE or kind.kind == RESNET and not kind.depth
        if prefix is None and not unusual and 'mmdense' not in found.meta:
            parts = [repr(part) for part in first_names(found.backbone)[:4]]
            remedy = f' (such as {" or ".join(parts)})' if 1 < len(parts) < 4 else ''
            raise CheckpointError(
                f'{number}: no network is known that has such tensors, so nothing was written. '
                f"--prefix PREFIX takes the part below it{remedy}, --prefix '' takes all of them "
                'as they are'
            )
        return None, 'not compared with a network'
    if network.missed:
        missed, kind = network.missed, with_article(network.name)
        raise CheckpointError(
            f'{number}, {len(missed)} missed. A{kind[1:]} has also {", ".join(missed[:3])}'
            f'{", …" if len(missed) > 3 else ""}: nothing was written; use a complete file'
        )
    other = f', {len(network.resized)} of another size than those of {network.name}'
    return network, f'0 missed{other if network.resized else ""}'


def _name_algorithm(found: Recognised, checkpoint: str) -> dict:
    """Return the algorithm of ours that a file holds, and its product."""
    own = found.meta.get('mmdense') or {}
    kind = MODELS.get(found.algorithm_type) if found.algorithm_type else None
    product = own.get('product') or getattr(kind, 'product', None)
    if found.algorithm is None or not product:
        raise CheckpointError(
            f'{checkpoint} ({found}) does not hold a complete algorithm of mmdense: '
            'convert its backbone, without --whole'
        )
    return dict(algorithm=found.algorithm_type, product=product)
