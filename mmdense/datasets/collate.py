# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Any, Optional, Sequence

from mmengine.dataset import default_collate as mmengine_default_collate

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
