# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.model import BaseModule
from torch import Tensor

from mmdense.models.losses import info_nce
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero

from .mmpretrain_loss import check_loss


@MODELS.register_module()
class InfoNCEHead(BaseModule):
    """Contrast queries with a queue of negatives: :func:`mmdense.models.losses.info_nce`.

    Args:
        temperature (float): τ, above 0. Defaults to 0.2, MoCo v2's and
            DenseCL's.
        loss (dict, optional): The loss that a config of mmpretrain's ``ContrastiveHead`` names:
            ``CrossEntropyLoss``, which this head computes.
    """

    def __init__(self, temperature: float = 0.2, loss: Optional[dict] = None) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
        check_loss(loss, 'CrossEntropyLoss')
        self.temperature = temperature

    def loss(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor,
        extra: Optional[Tensor] = None,
        num_queries: Optional[float] = None,
    ) -> Tensor:
        """Return the mean loss of M normalised queries.

        Args:
            query (Tensor): M×C.
            key (Tensor): M×C, the positives.
            queue (Tensor): C×K, the negatives.
            extra (Tensor, optional): M×C, one more negative of each query.
            num_queries (float, optional): Number to divide the sum by instead of M.

        Returns:
            Tensor: A scalar.
        """
        return info_nce(query, key, queue, self.temperature, extra, num_queries)
