# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmdense.models.utils import in_float32
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero, check_counts


@MODELS.register_module()
class SemanticGrouping(BaseModule):
    r"""Assign locations to prototypes, and pool the locations of each prototype to a slot.

    SlotCon (https://arxiv.org/abs/2205.15288), equations 1 and 2:

    .. math:: A = \mathrm{softmax}_p(\langle \bar c_p, \bar z \rangle / \tau) + 10^{-6},
              \quad s_p = \sum_{hw} A_{phw} z_{hw} / \sum_{hw} A_{phw}

    Args:
        num_prototypes (int): P.
        feat_dim (int): Channels C of the projections. Defaults to 256.
        temperature (float): τ of the assignment, above 0. Defaults to 0.07.

    Attributes:
        slot_embed (nn.Embedding): P×C, the prototypes, from N(0, 1).
    """

    def __init__(self, num_prototypes: int, feat_dim: int = 256, temperature: float = 0.07) -> None:
        super().__init__()
        check_counts(num_prototypes=num_prototypes, feat_dim=feat_dim)
        check_above_zero(temperature=temperature)
        self.temperature = temperature
        self.slot_embed = nn.Embedding(num_prototypes, feat_dim)

    @in_float32
    def scores(self, z: Tensor) -> Tensor:
        """Return the cosines of locations and prototypes.

        Args:
            z (Tensor): N×C×H×W, not normalised.

        Returns:
            Tensor: N×P×H×W.
        """
        prototypes = normalize(self.slot_embed.weight, dim=1)
        return torch.einsum('pc,nchw->nphw', prototypes, normalize(z, dim=1))

    @in_float32
    def forward(self, z: Tensor) -> Tuple[Tensor, Tensor]:
        """Group a batch of maps.

        Args:
            z (Tensor): N×C×H×W, not normalised.

        Returns:
            tuple[Tensor, Tensor]: Slots N×P×C and scores N×P×H×W.
        """
        scores = self.scores(z)
        attention = (scores.flatten(2) / self.temperature).softmax(dim=1) + 1e-6  # NxPxS
        # divided before the product: NxPxS is smaller than NxPxC
        attention = attention / attention.sum(2, keepdim=True)
        return torch.bmm(attention, z.flatten(2).transpose(1, 2)), scores
