# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.model import BaseModule
from torch import Tensor

from mmdense.models.losses import nt_xent
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero

from .mmpretrain_loss import check_loss


@MODELS.register_module()
class NTXentHead(BaseModule):
    """Contrast the images of a batch with each other: :func:`mmdense.models.losses.nt_xent`.

    Args:
        temperature (float): τ, above 0. Defaults to 0.1, SimCLR's on ImageNet.
        loss (dict, optional): The loss that a config of mmpretrain's ``ContrastiveHead`` names:
            ``CrossEntropyLoss``, which this head computes.
    """

    def __init__(self, temperature: float = 0.1, loss: Optional[dict] = None) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        check_loss(loss, 'CrossEntropyLoss')
        self.temperature = temperature

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views of N images: twice the mean over the 2N rows.

        Args:
            first (Tensor): N×C, normalised.
            second (Tensor): N×C, normalised.

        Returns:
            Tensor: A scalar.
        """
        return nt_xent(first, second, self.temperature)
