# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Tuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .float32 import in_float32


def search_features(local: Tensor, maps: Tensor) -> Tuple[Tensor, Tensor]:
    r"""Search the features of local crops in maps of the same images.

    SCFS (https://arxiv.org/abs/2212.06486): each location :math:`f` of a map is weighted by its
    cosine with the mean feature :math:`u` of the crop,

    .. math:: A_{hw} = \langle \bar u, \bar f_{hw} \rangle, \quad A_{hw} f_{hw}

    There is no softmax, and a negative cosine stays negative. No gradient flows.

    Args:
        local (Tensor): LN×C×h×w, the maps of L local crops: of all N images of crop 0, then of
            crop 1, and so on.
        maps (Tensor): N×C×H×W, the maps to search in.

    Returns:
        tuple[Tensor, Tensor]: The weighted maps LN×C×H×W in the order of ``local``, and the cosines
        A, L×N×H×W, float32. A crop whose features are 0 has the cosine 0 everywhere.
    """
    with torch.no_grad():
        attention = _cosines(local, maps)
        found = attention.to(maps.dtype).unsqueeze(2) * maps  # LxNxCxHxW
    return found.flatten(0, 1), attention


@in_float32
def _cosines(local: Tensor, maps: Tensor) -> Tensor:
    query = normalize(local.mean((2, 3)), dim=1).unflatten(0, (-1, len(maps)))  # LxNxC
    key = maps.flatten(2)  # NxCxS
    dots = torch.bmm(query.transpose(0, 1), key)  # NxLxS
    lengths = torch.linalg.vector_norm(key, dim=1, keepdim=True).clamp_(min=1e-12)
    return (dots / lengths).transpose(0, 1).unflatten(2, maps.shape[2:])
