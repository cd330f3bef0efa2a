# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from torch import Tensor
from torch.nn.functional import normalize

from mmdense.models.utils import in_float32


@in_float32
def feature_reconstruction(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared distances of features, both scaled to length 1, as one sum.

    UP-DETR (https://arxiv.org/abs/2011.09094), equation 3, without its average.

    Args:
        prediction (Tensor): M×C, of the matched queries.
        target (Tensor): M×C, of the patches that they were matched to; a constant: it gets no
            gradient.

    Returns:
        Tensor: A scalar in [0, 4M].
    """
    p, z = (normalize(x, dim=1) for x in (prediction, target.detach()))
    return (p - z).square().sum()
