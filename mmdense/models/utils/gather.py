# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Sequence

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.no_grad()
def gather_rows(rows: Tensor, counts: Sequence[int]) -> List[Tensor]:
    """Return the rows of all processes, which may have different numbers of rows.

    Args:
        rows (Tensor): R×C.
        counts (Sequence[int]): R of each process.

    Returns:
        List[Tensor]: Of each process its R×C.
    """
    if len(counts) == 1:
        return [rows.detach()]
    padded = rows.new_zeros(max(counts), rows.size(1))
    padded[: len(rows)] = rows
    return [part[:count] for part, count in zip(all_gather(padded), counts)]


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.number = len(rows)
        return torch.cat(all_gather(rows))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        all_reduce(grad)
        return grad[get_rank() * ctx.number :][: ctx.number]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in their order; gradients flow to the process that a row
    is from, summed over all processes.

    Args:
        rows (Tensor): N×C. N is the same in every process.

    Returns:
        Tensor: (N·W)×C.
    """
    return rows if get_world_size() == 1 else _GatherWithGradient.apply(rows)
