# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12)
        unit = x / length
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        unit, length = ctx.saved_tensors
        along = (grad * unit).sum(1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).div_(length)


def unit_vectors(x: Tensor) -> Tensor:
    """Divide vectors by their lengths, as ``torch.nn.functional.normalize(x, dim=1)`` does.

    Backward goes over the vectors four times and not ten, and keeps the result for it but not
    ``x``: for maps, where vectors are much of a loss's work.

    Args:
        x (Tensor): N×C×…, vectors of C numbers; those of length 0 stay 0.

    Returns:
        Tensor: The same shape. It can be differentiated once.
    """
    return _UnitVectors.apply(x)
