# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from functools import wraps
from typing import Callable

import torch
from torch import Tensor


def in_float32(function: Callable) -> Callable:
    """Decorate a function that is too delicate for half precision: autocast is off in it,
    and half-precision tensors among its arguments come in as float32.

    Cosines divided by a small temperature, sums over thousands of exponentials,
    norms: bfloat16 knows 0.9 to two digits, and the square of a float16 above
    255 is infinite. They cost next to nothing compared with the backbone.

    Args:
        function (Callable): Takes at least one tensor, not nested in another
            argument.

    Returns:
        Callable: Its result is the same under autocast as without.
    """

    @wraps(function)
    def call(*args, **kwargs):
        args = [_float32(x) for x in args]
        kwargs = {name: _float32(x) for name, x in kwargs.items()}
        tensor = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(tensor.device.type, enabled=False):
            return function(*args, **kwargs)

    return call


def _float32(x):
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
