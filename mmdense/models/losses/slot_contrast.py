# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor
from torch.nn.functional import cross_entropy

from mmdense.models.utils import in_float32


@in_float32
def slot_contrast(
    query: Tensor,
    key: Tensor,
    target: Tensor,
    temperature: float = 0.2,
    num_positives: Optional[float] = None,
) -> Tensor:
    r"""Return the InfoNCE of slots against the slots of all images.

    SlotCon (https://arxiv.org/abs/2205.15288), equation 6, one direction,
    times 2τ as in the published code:

    .. math:: -\frac{2\tau}{M} \sum_m \log \frac{e^{\langle q_m, k_{t(m)} \rangle / \tau}}
              {\sum_r e^{\langle q_m, k_r \rangle / \tau}}

    Args:
        query (Tensor): M×C, normalised: predictions from the student's slots.
        key (Tensor): R×C, normalised: slots of the teacher, of all images.
        target (Tensor): M, t(m), which of the R is a query's own.
        temperature (float): τ, above 0.
        num_positives (float, optional): What to divide the sum by
            instead of M. The positives of all processes over the number of
            processes make DistributedDataParallel's mean equal one process
            with the joined batch, however they are spread.

    Returns:
        Tensor: A scalar of at least 0; 0 when there is no positive.
    """
    number = len(query) if num_positives is None else num_positives
    logits = query @ key.t() / temperature  # MxR
    loss = cross_entropy(logits, target, reduction='sum')
    # 0 / ε = 0 where there is none
    return 2 * temperature * loss / max(number, 1e-6)
