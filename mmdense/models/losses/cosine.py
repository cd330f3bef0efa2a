# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.utils import in_float32


@in_float32
def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Return the mean squared distance of two sets of vectors, both scaled to length 1.

    BYOL (https://arxiv.org/abs/2006.07733), equation 2, one direction:
    :math:`\|\bar p - \bar z\|^2 = 2 - 2 \cos(p, z)`.

    Args:
        prediction (Tensor): N×C.
        target (Tensor): N×C, a constant: it gets no gradient.

    Returns:
        Tensor: A scalar in [0, 4]: 0 for equal directions, 2 for unrelated ones.
    """
    p, z = (normalize(x, dim=1, eps=1e-6) for x in (prediction, target.detach()))
    return (p - z).square().sum(1).mean()
