# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Tuple

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from torch import Tensor


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tuple[Tensor, int]:
    """Rows of all processes, which may have differently many.

    Args:
        rows (Tensor): R×C.

    Returns:
        tuple[Tensor, int]: (ΣR)×C, by process, and where this process's begin.
    """
    if get_world_size() == 1:
        return rows.detach(), 0
    counts = torch.cat(all_gather(torch.tensor([len(rows)], device=rows.device))).tolist()
    padded = rows.new_zeros(max(counts), rows.size(1))
    padded[: len(rows)] = rows
    gathered = [part[:count] for part, count in zip(all_gather(padded), counts)]
    return torch.cat(gathered), sum(counts[: get_rank()])
