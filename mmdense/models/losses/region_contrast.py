# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mmdense.models.utils import in_float32


@in_float32
def region_embeddings(maps: Tensor, scores: Tensor) -> Tensor:
    r"""Return the sums of a map over the soft regions of its classes.

    DenseSiam (https://arxiv.org/abs/2203.11075), by its released code:
    :math:`e_k = \sum_i \mathrm{softmax}(z_i)_k \, f_i`, a sum and not a mean.

    Args:
        maps (Tensor): N×C×H×W, f.
        scores (Tensor): N×K×H×W, z.

    Returns:
        Tensor: N×K×C, in float32: a sum over thousands of locations.
    """
    masks = scores.flatten(2).softmax(1)  # NxKxS
    return torch.bmm(masks, maps.flatten(2).transpose(1, 2).to(masks.dtype))


@in_float32
def region_contrast(prediction: Tensor, key: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Return the InfoNCE of an image's regions in one view against those in the other view.

    DenseSiam (https://arxiv.org/abs/2203.11075), by its released code, one direction: the same
    class of the other view is the positive, the other classes of the SAME image are the negatives.
    Both arguments get gradients.

    Args:
        prediction (Tensor): N×K×C, h, not normalised.
        key (Tensor): N×K×C, g of the other view, not normalised.
        temperature (float): Above 0. Defaults to 0.1.

    Returns:
        Tensor: A scalar of at least 0, the mean over images and classes; ln K at chance.
    """
    h, g = normalize(prediction, dim=2), normalize(key, dim=2)
    logits = torch.bmm(h, g.transpose(1, 2)) / temperature  # NxKxK
    target = torch.arange(logits.size(1), device=logits.device).expand(len(logits), -1)
    return cross_entropy(logits.transpose(1, 2), target)
