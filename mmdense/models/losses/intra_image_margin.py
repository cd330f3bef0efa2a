# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Union

from torch import Tensor

from mmdense.models.utils import in_float32


@in_float32
def intra_image_margin(
    similarity: Tensor,
    valid: Tensor,
    margin: float = 0.4,
    num_pairs: Union[None, float, Tensor] = None,
) -> Tensor:
    r"""Return the margin loss between the regions of one image.

    CCOP (https://arxiv.org/abs/2111.13651), by its released code. With :math:`S_{ab}` the cosine
    of the query of region a and the key of region b, and P the valid pairs of all images:

    .. math:: \frac{1}{|P|} \sum_{(a, b) \in P} \max(0, S_{ab} - S_{bb} + m)

    For each key, the query of another region is compared with the query of its own. Both get
    gradients.

    Args:
        similarity (Tensor): N×R×R, S; rows are queries.
        valid (Tensor): N×R×R bool, the pairs that count.
        margin (float): m. Defaults to 0.4.
        num_pairs (float | Tensor, optional): Number to divide the sum by instead of \|P\|: the
            pairs of all processes over the number of processes, a scalar.

    Returns:
        Tensor: A scalar of at least 0; 0 without a valid pair.
    """
    own = similarity.diagonal(dim1=1, dim2=2)[:, None]  # Nx1xR, S_bb
    hinge = (similarity - own + margin).clamp(min=0) * valid
    number = valid.sum() if num_pairs is None else num_pairs
    # 0 / ε = 0 where there is none
    return hinge.sum() / (number + 1e-6 * (number == 0))
