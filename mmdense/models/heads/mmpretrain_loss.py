# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmdense.utils.errors import InputError


def check_loss(loss: Optional[dict], computed: str) -> None:
    """Check the loss that a config of mmpretrain's gives to a head.

    Args:
        loss (dict, optional): Config of a loss of mmpretrain; None where there is none.
        computed (str): Name of the loss that the head computes.

    Raises:
        InputError: When it is another loss, or has arguments.
    """
    if loss is None:
        return
    given = dict(loss)
    kind = given.pop('type', None)
    name = getattr(kind, '__name__', str(kind)).split('.')[-1]
    given.pop('_scope_', None)
    if name != computed or given:
        raise InputError(
            f'the head computes {computed} without further arguments, got loss={dict(loss)}: leave '
            'loss out'
        )
