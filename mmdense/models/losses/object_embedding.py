# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from torch import Tensor

from mmdense.models.utils import in_float32


@in_float32
def object_embedding(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of each pair of embeddings, as one sum over the pairs.

    DETReg (https://arxiv.org/abs/2106.04550), section 3.2, without its average over pairs.

    Args:
        prediction (Tensor): M×C, of the matched queries.
        target (Tensor): M×C, of the crops that they were matched to; a constant: it gets no
            gradient.

    Returns:
        Tensor: A scalar of at least 0; 0 where M is 0.
    """
    return (prediction - target.detach()).abs().sum() / prediction.size(1)
