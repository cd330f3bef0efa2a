# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import os
from typing import Dict

import torch
from torch import Tensor

import mmdense
from mmdense.utils.errors import CheckpointError

from .formats import recognise
from .io import read_checkpoint


def describe_product(algorithm) -> dict:
    """What a checkpoint of ours says about itself, in ``meta['mmdense']``.

    Args:
        algorithm (DenseSelfSupervisor): The model of the run.

    Returns:
        dict: ``version``, ``algorithm``, and ``product``, the path of the
        sub-module that the run is for.
    """
    return dict(
        version=mmdense.__version__,
        algorithm=type(algorithm).__name__,
        product=algorithm.product,
    )


def save_backbone(tensors: Dict[str, Tensor], path: str, **about) -> None:
    """Writes a backbone alone, whole or not at all.

    Args:
        tensors (Dict[str, Tensor]): Named as in the backbone.
        path (str): Where to. The file loads by ``SelfSupPretrained``, and by
            MMEngine's ``Pretrained`` without a prefix.
        about: Goes into ``meta['mmdense']``.
    """
    meta = dict(mmdense=dict(about, product=''))
    # Contiguous copies: a view would be saved with all of its storage.
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    torch.save(dict(meta=meta, state_dict=tensors), f'{path}.part')
    os.replace(f'{path}.part', path)


def export_backbone(checkpoint: str, path: str) -> str:
    """Takes the backbone out of a training checkpoint.

    Args:
        checkpoint (str): Any that :func:`recognise` knows.
        path (str): File to write.

    Returns:
        str: One line about what was done.

    Raises:
        CheckpointError: When ``checkpoint`` cannot be read or has no backbone,
            or ``path`` is the same file.
    """
    if os.path.exists(path) and os.path.samefile(checkpoint, path):
        raise CheckpointError(f'{path} is the checkpoint itself: name another file to write')
    found = recognise(read_checkpoint(checkpoint), name=checkpoint)
    about = dict(found.meta.get('mmdense') or {}, writer=found.writer)
    for key in ('epoch', 'iter'):
        if key in found.meta:
            about[key] = found.meta[key]
    save_backbone(found.backbone, path, **{k: v for k, v in about.items() if k != 'product'})
    return (
        f'{path}: {len(found.backbone)} tensors, written by {found.writer}; '
        f'{len(found.dropped)} of other parts left out'
    )
