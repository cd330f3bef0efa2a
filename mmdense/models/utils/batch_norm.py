# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _norms(backbone: nn.Module) -> List[_BatchNorm]:
    return [m for m in backbone.modules() if isinstance(m, _BatchNorm)]


@torch.no_grad()
def calibrate(backbone: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Give BatchNorm the statistics of some images, equally weighted.

    A random backbone without these statistics would be worse than it has to be.

    Args:
        backbone (nn.Module): Left in eval mode.
        inputs (Sequence[Tensor]): Each N×3×H×W, as the backbone takes them.
    """
    backbone.eval()
    norms = _norms(backbone)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain averages
        norm.train()
    for image in inputs:
        backbone(image)
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum
        norm.eval()
