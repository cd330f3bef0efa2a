# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import linear

from mmdense.models.utils import in_float32, unit_vectors
from mmdense.registry import MODELS
from mmdense.utils.checks import check_counts


class WeightNormLinear(nn.Module):
    """Compute the products with weights whose rows are scaled to length 1, or to learned lengths.

    PyTorch's ``weight_norm`` is computed here, since a module that it changes cannot be copied.

    Args:
        in_features (int): C.
        out_features (int): P.
        learn_lengths (bool): Whether the lengths are learned. Defaults to False.

    Attributes:
        weight_v (Parameter): P×C, the rows before they are scaled.
        weight_g (Parameter | None): P×1, their lengths, 1 at the start. None: 1.
    """

    def __init__(self, in_features: int, out_features: int, learn_lengths: bool = False) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # as PyTorch's linear layer
        lengths = nn.Parameter(torch.ones(out_features, 1)) if learn_lengths else None
        self.register_parameter('weight_g', lengths)

    def forward(self, x: Tensor) -> Tensor:
        """Return M×P of M×C."""
        weight = unit_vectors(self.weight_v)
        return linear(x, weight if self.weight_g is None else self.weight_g * weight)


@MODELS.register_module()
class DINONeck(BaseModule):
    """Project pooled features to unit vectors, and compare these with prototypes.

    The projection head of DINO (https://arxiv.org/abs/2104.14294, section 3.2 and appendix C):
    an MLP with GELU and without norms, whose output is scaled to length 1, then a layer of
    prototypes, whose rows have length 1 too.

    Args:
        in_channels (int): Channels of the maps or vectors.
        hid_channels (int): Channels between the layers of the MLP. Defaults to 2048.
        out_channels (int): C, channels of the MLP's output. Defaults to 256.
        num_prototypes (int): P. Defaults to 65536.
        num_layers (int): Layers of the MLP. Defaults to 3.
        norm_last_layer (bool): Whether the prototypes have length 1; if not, their lengths are
            learned. Defaults to True.
        init_cfg (dict, optional): Defaults to a truncated normal with std 0.02, biases 0.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 256,
        num_prototypes: int = 65536,
        num_layers: int = 3,
        norm_last_layer: bool = True,
        init_cfg: Optional[dict] = None,
    ) -> None:
        usual = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0)
        super().__init__(init_cfg or usual)
        check_counts(
            in_channels=in_channels,
            hid_channels=hid_channels,
            out_channels=out_channels,
            num_prototypes=num_prototypes,
            num_layers=num_layers,
        )
        widths = [in_channels, *[hid_channels] * (num_layers - 1), out_channels]
        layers = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = WeightNormLinear(out_channels, num_prototypes, not norm_last_layer)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_prototypes = num_prototypes

    def forward(self, x: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
        """Compare images with the prototypes.

        Args:
            x (Sequence[Tensor]): Maps N×in_channels×H×W, which are pooled, or vectors
                N×in_channels; one for each size of the views.

        Returns:
            tuple[Tensor, Tensor]: Unit vectors M×C and scores M×P of all images, in the order of
            ``x``; float32.
        """
        pooled = torch.cat([one.mean((2, 3)) if one.dim() == 4 else one for one in x])
        return self._compare(self.mlp(pooled))

    @in_float32
    def _compare(self, z: Tensor) -> Tuple[Tensor, Tensor]:
        z = unit_vectors(z)
        return z, self.last_layer(z)
