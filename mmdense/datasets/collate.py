# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Any, List, Optional, Sequence

import torch
from mmengine.dataset import default_collate as mmengine_default_collate
from torch import Tensor
from torch.nn.functional import pad

from mmdense.registry import FUNCTIONS


@FUNCTIONS.register_module()
def default_collate(data_batch: Sequence, _scope_: Optional[str] = None) -> Any:
    """Collate as MMEngine's ``default_collate``, in configs that others inherit.

    Inheriting a config through ``package::`` adds ``_scope_`` to every dict with a type, and
    MMEngine passes all entries of a ``collate_fn`` dict but its type to the function. Write
    ``dict(type='mmdense.default_collate')``: without the prefix MMEngine takes its own, in any
    default scope.

    Args:
        data_batch (Sequence): Samples of the data set.
        _scope_ (str, optional): Scope of the config; ignored.

    Returns:
        Any: The batch: tensors stacked, data samples in a list.
    """
    return mmengine_default_collate(data_batch)


@FUNCTIONS.register_module()
def pad_collate(data_batch: Sequence[dict], _scope_: Optional[str] = None) -> Any:
    """Collate as :func:`default_collate`, images of different sizes too.

    Each view is padded at the right and at the bottom to the largest height and width of the
    batch. ``view_shapes`` of a data sample says which part of each view is the image: (height,
    width) in pixels. :class:`~mmdense.models.SelfSupDataPreprocessor` makes the padding 0.

    Args:
        data_batch (Sequence[dict]): Samples of the data set, with ``inputs``, a list of V tensors
            C×H×W, and ``data_samples``.
        _scope_ (str, optional): Scope of the config; ignored.

    Returns:
        Any: The batch: ``inputs``, V tensors N×C×H×W, and ``data_samples``, a list of N.
    """
    views = [_pad_to_largest(view) for view in zip(*(one['inputs'] for one in data_batch))]
    for one in data_batch:
        shapes = [tuple(view.shape[1:]) for view in one['inputs']]
        one['data_samples'].set_metainfo(dict(view_shapes=shapes))
    return dict(inputs=views, data_samples=[one['data_samples'] for one in data_batch])


def _pad_to_largest(images: Sequence[Tensor]) -> Tensor:
    """Return N×C×H×W with the images, C×h×w, at the top left."""
    height, width = (max(image.size(i) for image in images) for i in (1, 2))
    padded: List[Tensor] = [
        pad(image, (0, width - image.size(2), 0, height - image.size(1))) for image in images
    ]
    return torch.stack(padded)
