# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmdense.utils.checks import check_fractions


class TeacherCenter(nn.Module):
    """Keep the moving average of a teacher's scores, which is subtracted from them so
    that no prototype takes everything.

    From DINO (https://arxiv.org/abs/2104.14294), equation 4, and SlotCon
    (https://arxiv.org/abs/2205.15288), section 3.2.

    Args:
        num_prototypes (int): P.
        momentum (float): Weight of the past, in [0, 1]. Defaults to 0.9.

    Attributes:
        value (Tensor): P, a buffer; zeros at the start.
    """

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        check_fractions(center_momentum=momentum)
        self.momentum = momentum
        self.register_buffer('value', torch.zeros(num_prototypes))

    @torch.no_grad()
    def update(self, *scores: Tensor) -> None:
        """Move the center towards the mean of this batch, of all processes.

        Args:
            scores (Tensor): One or more N×P×…, the teacher's.
        """
        means = [s.float().transpose(0, 1).flatten(1).mean(1) for s in scores]
        mean = torch.stack(means).mean(0)
        all_reduce(mean, op='mean')
        self.value.lerp_(mean, 1 - self.momentum)
