# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor

from .float32 import in_float32


@torch.no_grad()
@in_float32
def match_locations(feat_q: Tensor, feat_k: Tensor) -> Tensor:
    """Return the most similar location of the key's map for every location of the query's.

    DenseCL (https://arxiv.org/abs/2011.09157), equation 3. No gradient flows
    through the match.

    Args:
        feat_q (Tensor): N×C×S, locations flattened, normalised over C.
        feat_k (Tensor): N×C×T, likewise.

    Returns:
        Tensor: N×S, indices into the T locations.
    """
    return torch.bmm(feat_q.transpose(1, 2), feat_k).argmax(dim=2)


def gather_locations(feat: Tensor, index: Tensor) -> Tensor:
    """Return the locations of a map that an index names.

    Args:
        feat (Tensor): N×C×T, locations flattened.
        index (Tensor): N×S, indices into the T locations.

    Returns:
        Tensor: N×C×S.
    """
    return feat.gather(2, index.unsqueeze(1).expand(-1, feat.size(1), -1))
