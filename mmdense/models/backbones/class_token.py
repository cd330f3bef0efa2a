# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Tuple

from torch import Tensor


class ClassTokenInTraining:
    """Return the class token in training, which a projector takes, and otherwise feature maps
    N×C×H/p×W/p, as every backbone that is evaluated, shown or transferred.

    A mixin, before mmpretrain's ``VisionTransformer``.
    """

    def _format_output(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        if self.training:
            return x[:, 0]
        tokens = x[:, self.num_extra_tokens :]  # N×HW×C
        return tokens.transpose(1, 2).unflatten(2, tuple(hw))
