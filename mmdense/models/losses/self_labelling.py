# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor
from torch.nn.functional import cross_entropy

from mmdense.models.utils import in_float32


@in_float32
def self_labelling(scores: Tensor, class_weight: Optional[Tensor] = None) -> Tensor:
    r"""Return the cross-entropy of scores and their own best classes.

    The segmentation loss of DenseSiam's released code (https://arxiv.org/abs/2203.11075): with
    :math:`y = \arg\max_k z_k`, a constant, at each location

    .. math:: \omega_y \, (-\log \mathrm{softmax}(z)_y)

    and the plain mean over locations: it is not divided by the sum of the weights.

    Args:
        scores (Tensor): N×K×…, z.
        class_weight (Tensor, optional): K, ω. None is 1 for all.

    Returns:
        Tensor: A scalar of at least 0.
    """
    label = scores.argmax(1)
    loss = cross_entropy(scores, label, reduction='none' if class_weight is not None else 'mean')
    return loss if class_weight is None else (class_weight[label] * loss).mean()
