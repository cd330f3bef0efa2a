# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional

from torch import Tensor

from mmdense.models.utils import in_float32

from .group_distillation import assign_prototypes
from .swapped_prediction import swapped_prediction


@in_float32
def multi_crop_distillation(
    student: Tensor,
    teacher: Tensor,
    center: Optional[Tensor] = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    r"""Teach the student to assign each crop of an image as the teacher assigns the others.

    DINO (https://arxiv.org/abs/2104.14294), section 3.1, equations 3 and 4: the mean over the G
    crops g of the teacher, over the V − 1 other crops v of the student and over the N images of

    .. math:: -\sum_p \mathrm{softmax}\left(\frac{t_g - c}{\tau_t}\right)_p
              \log \mathrm{softmax}\left(\frac{s_v}{\tau_s}\right)_p

    Args:
        student (Tensor): V×N×P, scores of all crops; the first G are those of the teacher.
        teacher (Tensor): G×N×P, the teacher's scores. Gets no gradient.
        center (Tensor, optional): P, subtracted from the teacher's. None subtracts nothing.
        student_temperature (float): τ_s. Defaults to 0.1.
        teacher_temperature (float): τ_t; the smaller, the sharper. Defaults to 0.04.

    Returns:
        Tensor: A scalar from 0.
    """
    targets = assign_prototypes(teacher.flatten(0, 1), center, teacher_temperature)
    targets = targets.view_as(teacher)
    return swapped_prediction(student, targets, range(len(teacher)), student_temperature)
