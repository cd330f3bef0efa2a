# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from mmdense.models.utils import in_float32

from .group_distillation import group_distillation


@in_float32
def feature_smooth_l1(student: Tensor, teacher: Tensor, beta: float = 2.0) -> Tensor:
    r"""Compare every channel of every location by the smooth L1 distance.

    Feature distillation (https://arxiv.org/abs/2205.14141), section 3.1:
    :math:`\frac{1}{2} d^2 / \beta` for a difference d below β, :math:`|d| - \beta / 2` above.

    Args:
        student (Tensor): N×C×…, projected features.
        teacher (Tensor): The same shape. Gets no gradient.
        beta (float): β, above 0.

    Returns:
        Tensor: A scalar from 0, the mean over all numbers.
    """
    return smooth_l1_loss(student, teacher.detach(), beta=beta)


@in_float32
def relation_distillation(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Make the locations of an image alike where the teacher's are alike.

    Each location is described by its cosines to the other locations of the image, as PixPro
    (https://arxiv.org/abs/2011.10043) compares locations; their softmax is compared by the
    cross-entropy of SlotCon (https://arxiv.org/abs/2205.15288), equation 4, with the other
    locations in the place of the prototypes. SEED (https://arxiv.org/abs/2101.04731) does so for
    images.

    Args:
        student (Tensor): N×C×H×W, of at least two locations.
        teacher (Tensor): N×D×H×W. Gets no gradient. The number of channels may be another.
        temperature (float): Temperature of both softmaxes, above 0.

    Returns:
        Tensor: A scalar: at least the entropy of the teacher's softmax, and equal to it where all
        cosines are equal.
    """
    scores = (_other_cosines(x) for x in (student, teacher.detach()))
    return group_distillation(*scores, None, temperature, temperature)


def _other_cosines(x: Tensor) -> Tensor:
    """Return the cosines of S locations to the S − 1 others of an image, (N·S)×(S − 1)."""
    x = normalize(x.flatten(2), dim=1)
    cosines = torch.bmm(x.transpose(1, 2), x)  # N×S×S
    n, s, _ = cosines.shape
    # without the first number, every (S + 1)-th is one of the diagonal
    return cosines.flatten(1)[:, 1:].view(n, s - 1, s + 1)[..., :-1].reshape(n * s, s - 1)
