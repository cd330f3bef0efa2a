# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor
from torch.nn.functional import cross_entropy, softmax

from mmdense.models.utils import in_float32


@in_float32
def group_distillation(
    student: Tensor,
    teacher: Tensor,
    center: Optional[Tensor] = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
) -> Tensor:
    r"""Teach the student to assign a place to the prototypes as the teacher does.

    SlotCon (https://arxiv.org/abs/2205.15288), equation 4, one direction; the
    centering is DINO's (https://arxiv.org/abs/2104.14294):

    .. math:: -\sum_p \mathrm{softmax}\left(\frac{t - c}{\tau_t}\right)_p
              \log \mathrm{softmax}\left(\frac{s}{\tau_s}\right)_p

    Args:
        student (Tensor): N×P×…, cosines to the P prototypes.
        teacher (Tensor): The same of the teacher, location by location in the
            same place. Gets no gradient.
        center (Tensor, optional): P, subtracted from the teacher's. None subtracts nothing:
            with both temperatures 1 the loss is then DenseSiam's
            (https://arxiv.org/abs/2203.11075) between a prediction and the other view's
            projection, as its released code has it.
        student_temperature (float): τ_s.
        teacher_temperature (float): τ_t; the smaller, the sharper.

    Returns:
        Tensor: A scalar, the mean over all locations.
    """
    target = assign_prototypes(teacher, center, teacher_temperature)
    # division by 1 copies large maps for nothing
    scores = student / student_temperature if student_temperature != 1 else student
    return cross_entropy(scores, target)


def assign_prototypes(teacher: Tensor, center: Optional[Tensor], temperature: float) -> Tensor:
    r"""Compute the teacher's assignment, :math:`\mathrm{softmax}((t - c) / \tau_t)`.

    Args:
        teacher (Tensor): N×P×…, scores. Gets no gradient.
        center (Tensor, optional): P, subtracted from the scores. None subtracts nothing.
        temperature (float): τ_t, above 0.

    Returns:
        Tensor: The same shape; the P shares of a sample sum to 1.
    """
    target = teacher.detach()
    if center is not None:
        target = target - center.view(-1, *[1] * (teacher.dim() - 2))
    return softmax(target / temperature if temperature != 1 else target, dim=1)
