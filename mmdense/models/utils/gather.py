# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Sequence

import torch
from mmengine.dist import all_gather
from torch import Tensor


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
