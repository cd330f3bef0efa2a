# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, Optional, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn.functional import interpolate

from mmdense.models.losses import feature_smooth_l1, negative_cosine, relation_distillation
from mmdense.registry import MODELS
from mmdense.utils.checks import check_above_zero
from mmdense.utils.errors import InputError


@MODELS.register_module()
class MapDistillationHead(BaseModule):
    """Compare the student's projected map with the teacher's, on the finer grid of the two.

    The cosine and smooth L1 terms and their weights are those of AM-RADIO
    (https://arxiv.org/abs/2312.06709), equation 3, as is the cosine of the global token, equation
    2; β is feature distillation's (https://arxiv.org/abs/2205.14141).

    Args:
        cosine (float): Weight of one minus the cosine of each location. Defaults to 0.9.
        smooth_l1 (float): Weight of :func:`mmdense.models.losses.feature_smooth_l1`. Defaults to
            0.1.
        relation (float): Weight of :func:`mmdense.models.losses.relation_distillation`. Defaults to
            0.
        token (float): Weight of one minus the cosine of the image's vector. Defaults to 0.
        beta (float): β of the smooth L1 distance. Defaults to 2.
        temperature (float): Temperature of the relations. Defaults to 0.1.

    Raises:
        InputError: A weight is below 0, or all are 0.
    """

    def __init__(
        self,
        cosine: float = 0.9,
        smooth_l1: float = 0.1,
        relation: float = 0.0,
        token: float = 0.0,
        beta: float = 2.0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.weights = dict(cosine=cosine, smooth_l1=smooth_l1, relation=relation, token=token)
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise InputError(f'weights must be at least 0, and one above it, got {self.weights}')
        check_above_zero(beta=beta, temperature=temperature)
        self.beta, self.temperature = beta, temperature

    def loss(
        self,
        student: Tensor,
        teacher: Tensor,
        student_token: Optional[Tensor] = None,
        teacher_token: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        """Compute the weighted losses whose weights are above 0.

        Args:
            student (Tensor): N×C×H×W, projected.
            teacher (Tensor): N×C×h×w.
            student_token (Tensor, optional): N×C, projected. None is without this term.
            teacher_token (Tensor, optional): N×C.

        Returns:
            Dict[str, Tensor]: ``cosine``, ``smooth_l1``, ``relation``, ``token``.
        """
        student, teacher = on_finer_grid(student, teacher)
        terms = dict(
            cosine=lambda: 1 + negative_cosine(student, teacher),
            smooth_l1=lambda: feature_smooth_l1(student, teacher, self.beta),
            relation=lambda: relation_distillation(student, teacher, self.temperature),
        )
        if student_token is not None:
            terms['token'] = lambda: 1 + negative_cosine(student_token, teacher_token)
        return {n: self.weights[n] * term() for n, term in terms.items() if self.weights[n]}


def on_finer_grid(student: Tensor, teacher: Tensor) -> Tuple[Tensor, Tensor]:
    """Resize two maps (bilinear) to the larger number of rows and of columns of the two.

    Args:
        student (Tensor): N×C×H×W.
        teacher (Tensor): N×D×h×w.
    """
    grid = torch.Size(max(pair) for pair in zip(student.shape[2:], teacher.shape[2:]))
    return tuple(
        x
        if x.shape[2:] == grid
        else interpolate(x.float(), grid, mode='bilinear', align_corners=False)
        for x in (student, teacher)
    )
