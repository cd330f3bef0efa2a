# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.utils import in_float32


@in_float32
def negative_cosine(prediction: Tensor, target: Tensor, weight: Optional[Tensor] = None) -> Tensor:
    r"""Return the negative cosine similarity of a prediction and its target, one direction.

    SimSiam (https://arxiv.org/abs/2011.10566), equation 1, of vectors or at every location of a
    map: :math:`-\langle \bar p, \bar z \rangle`, a mean over locations and then over images.

    Args:
        prediction (Tensor): N×C, or N×C×…, maps.
        target (Tensor): The same shape. Gets no gradient.
        weight (Tensor, optional): N, the weight of each image. None is the mean over images, 1/N.

    Returns:
        Tensor: A scalar, in [−1, 1] where the weights sum to 1.
    """
    p, z = (normalize(x, dim=1, eps=1e-12) for x in (prediction, target.detach()))
    similarity = (p * z).sum(1)
    if weight is None:
        return -similarity.mean()
    return -(weight * similarity.flatten(1).mean(1)).sum()
