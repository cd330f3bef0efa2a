# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Measure frozen features by nearest neighbours and by a linear probe."""

import logging
from typing import Optional

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from mmdense.utils.checks import check_above_zero, check_counts

_BLOCK = 1024  # queries per similarity matrix


class NearestNeighbours:
    """Predict the classes of the most similar labelled features, weighted by similarity.

    As the k-NN of `InstDisc <https://arxiv.org/abs/1805.01978>`_, section 3.4,
    and `DINO <https://arxiv.org/abs/2104.14294>`_, appendix F.1: the k largest
    cosines vote with weights exp(cosine / temperature). With locations of maps this
    propagates labels from image to image.

    Args:
        features (Tensor): M×C.
        labels (Tensor): M, classes in [0, K).
        images (Tensor): M, not used.
        num_classes (int): K.
        k (int): Neighbours; all where there are fewer. Defaults to 20.
        temperature (float): Defaults to 0.07.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        images: Optional[Tensor],
        num_classes: int,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        check_counts(k=k)
        check_above_zero(temperature=temperature)
        self.bank = normalize(features, dim=1)
        self.votes = one_hot(labels, num_classes).to(features)
        self.k, self.temperature = min(k, len(labels)), temperature

    def __call__(self, features: Tensor) -> Tensor:
        """Map M×C features to M×K shares of the votes, in [0, 1]."""
        scores = []
        for queries in normalize(features, dim=1).split(_BLOCK):
            similarity, nearest = (queries @ self.bank.t()).topk(self.k, dim=1)
            weights = (similarity / self.temperature).softmax(1)
            scores.append((weights[..., None] * self.votes[nearest]).sum(1))
        return torch.cat(scores)


class LinearProbe:
    r"""Fit a multinomial logistic regression to standardised features.

    Minimises mean cross-entropy + λ/2 ‖W‖² (the bias is free) by L-BFGS, from
    zero, along the principal axes, each scaled by its curvature: some tens of
    iterations until no component of the gradient is above 1e-4.
    Of λ in 1, 0.1, 0.01, 0.001 the one with the least cross-entropy on every
    fifth image is taken, after training on the others; then all train. With
    fewer than five images λ is 0.1.

    Args:
        features (Tensor): M×C.
        labels (Tensor): M, classes in [0, K).
        images (Tensor, optional): M, which image each is of, from 0. Not used
            where ``decay`` is given.
        num_classes (int): K.
        decay (float, optional): λ. Defaults to None, chosen as above.

    Attributes:
        decay (float): λ.
        weight (Tensor): (C+1)×K float64, of standardised features; the last
            row is the bias.
    """

    DECAYS = (1.0, 0.1, 0.01, 0.001)

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        images: Optional[Tensor],
        num_classes: int,
        decay: Optional[float] = None,
    ) -> None:
        self.mean = features.double().mean(0)
        std = features.double().std(0, unbiased=False)
        # a channel that is constant but for rounding says nothing
        constant = std <= 1e-6 * self.mean.abs().max()
        self.std = torch.where(constant, std.new_full((), float('inf')), std)
        x = self._inputs(features)
        variances, axes = torch.linalg.eigh(x.t() @ x / len(x))
        axes, variances = _with_bias(axes), torch.cat([variances.clamp(min=0), std.new_ones(1)])
        x = (torch.cat([x, x.new_ones(len(x), 1)], dim=1) @ axes).float()
        if decay is None:
            decay = self._choose(x, labels, images % 5 == 4, variances, num_classes)
        self.decay = decay
        self.weight = axes @ _fit(x, labels, variances, num_classes, decay)

    def _choose(
        self, x: Tensor, labels: Tensor, held: Tensor, variances: Tensor, num_classes: int
    ) -> float:
        if not held.any():
            return 0.1
        best, least = None, np.inf
        for decay in self.DECAYS:
            weight = _fit(x[~held], labels[~held], variances, num_classes, decay)
            loss = float(cross_entropy(x[held] @ weight.float(), labels[held]))
            if loss >= least:
                break  # smaller ones only fit closer
            best, least = decay, loss
        return best

    def _inputs(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) / self.std

    def __call__(self, features: Tensor) -> Tensor:
        """Map M×C features to M×K logits, float64."""
        return self._inputs(features) @ self.weight[:-1] + self.weight[-1]


def _with_bias(axes: Tensor) -> Tensor:
    """Extend C×C to (C+1)×(C+1), which leaves the last as it is."""
    return torch.block_diag(axes, axes.new_ones(1, 1))


def _fit(x: Tensor, labels: Tensor, variances: Tensor, num_classes: int, decay: float) -> Tensor:
    """Return weights (C+1)×K of inputs M×(C+1) along their principal axes, the last the bias."""
    from scipy.optimize import minimize  # here, for runs import this module and rarely fit

    decays = torch.full_like(variances, decay)
    decays[-1] = 0
    scale = (variances / num_classes + decays).rsqrt()
    penalty = decays * scale.square()
    x = x * scale.float()
    target = one_hot(labels, num_classes).to(x).t()

    # K×M and K×(C+1), for the product with a thin matrix is several times slower the other way
    def loss(flat):
        w = torch.from_numpy(flat).to(x.device).reshape(num_classes, -1)
        log_p = (w.float() @ x.t()).log_softmax(0)
        value = -(log_p * target).sum(0).double().mean() + (penalty * w * w).sum() / 2
        gradient = (log_p.exp() - target) @ x / len(x) + penalty * w
        return float(value), gradient.flatten().cpu().numpy()

    options = dict(maxiter=1000, gtol=1e-4, ftol=0, maxcor=20)
    start = np.zeros(x.size(1) * num_classes)
    found = minimize(loss, start, jac=True, method='L-BFGS-B', options=options)
    steepest = np.abs(found.jac).max()
    if steepest > 1e-3:
        print_log(
            f'linear probe: after {found.nit} iterations the gradient is still {steepest:.1e}',
            logger='current',
            level=logging.WARNING,
        )
    weight = torch.from_numpy(found.x).to(x.device).reshape(num_classes, -1)
    return (weight * scale).t()
