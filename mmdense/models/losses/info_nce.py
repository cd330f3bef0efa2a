# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdense.models.utils import in_float32
from mmdense.utils.errors import InputError

# Largest M·K whose logits are computed at once: fewer operations, where the time is theirs.
# Streaming pays above. Time over that of the formula written out, C = 128, one thread of a Xeon
# with AVX-512, medians of 15 rounds, at once and streamed:
#
#     M \ K        256          1024          4096          8192         16384         65536
#     8       1.13, 1.44    1.08, 1.32    1.00, 1.11    0.98, 1.10    0.97, 1.05    0.95, 0.78
#     16      1.27, 1.39    1.08, 1.17    0.94, 1.02    0.96, 1.00    0.89, 0.94
#     32      1.10, 1.36    0.97, 1.03    0.92, 0.89    0.91, 0.89    0.93, 0.80    0.75, 0.69
#     64      1.11, 1.29    0.95, 0.94    0.86, 0.85    0.81, 0.75    0.76, 0.68
_AT_ONCE = 2**17

# Rows of a block of logits, and its numbers: with fewer rows it has more keys. 4 MiB are in a
# CPU's caches; a GPU takes 64 MiB, so that it is not kept waiting by many small steps.
_BLOCK = {'cpu': (512, 2**20), 'cuda': (2048, 2**24)}


class _InfoNCE(torch.autograd.Function):
    """Compute the InfoNCE of each of M queries, and in forward also its gradients.

    The loss and its gradient need the same softmax; backward only scales: two matrix products in
    all, and the queue may change in between.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        at_once = query.size(0) * queue.size(1) <= _AT_ONCE
        contrast = _contrast_at_once if at_once else _contrast_streamed
        scaled = query / temperature
        positive = (scaled * key).sum(1, keepdim=True)
        loss, mean_negative = contrast(scaled, positive, queue, needs_grad)
        if needs_grad:
            # d loss / d query = (Σ_j p_j queue_j + (p_+ − 1) key) / τ
            # d loss / d key = (p_+ − 1) query / τ
            pull = loss.neg().expm1_()  # p_+ − 1
            ctx.save_for_backward(mean_negative.addcmul_(pull, key), pull, query)
            ctx.temperature = temperature
        return loss.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad_query, pull, query = ctx.saved_tensors
        scale = grad_loss.unsqueeze(1) / ctx.temperature  # Mx1
        grad_key = scale * pull * query if ctx.needs_input_grad[1] else None
        return scale * grad_query, grad_key, None, None


def _contrast_at_once(
    scaled: Tensor, positive: Tensor, queue: Tensor, needs_grad: bool
) -> Tuple[Tensor, Optional[Tensor]]:
    """Return the loss of each query, and the mean of the negatives by their probabilities.

    Args:
        scaled (Tensor): M×C, queries over the temperature.
        positive (Tensor): M×1, the logits of the positives.
        queue (Tensor): C×K.
        needs_grad (bool): Whether the mean is needed.

    Returns:
        tuple[Tensor, Tensor or None]: M×1; Σ_j p_j queue_j, M×C.
    """
    log_prob = torch.cat([positive, scaled @ queue], dim=1).log_softmax(1)  # Mx(1+K)
    loss = -log_prob[:, :1]
    return loss, log_prob.exp_()[:, 1:] @ queue.t() if needs_grad else None


def _contrast_streamed(
    scaled: Tensor, positive: Tensor, queue: Tensor, needs_grad: bool
) -> Tuple[Tensor, Optional[Tensor]]:
    """Compute the same as :func:`_contrast_at_once` in blocks of the M×K logits.

    What is summed up is rescaled when a larger logit comes (the online softmax of Milakov and
    Gimelshein, https://arxiv.org/abs/1805.02867).
    """
    rows, numbers = _BLOCK['cpu' if scaled.device.type == 'cpu' else 'cuda']
    keys = max(numbers // min(rows, scaled.size(0)), 1)
    losses, means = [], []
    for part, top in zip(scaled.split(rows), positive.split(rows)):
        own, total = top, torch.ones_like(top)
        mean = torch.zeros_like(part) if needs_grad else None  # Σ_j p_j queue_j
        for block in queue.split(keys, dim=1):
            logits = part @ block
            last, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
            shrink = (last - top).exp_()
            logits.sub_(top).exp_()
            total = total * shrink + logits.sum(1, keepdim=True)
            if needs_grad:
                mean.mul_(shrink).addmm_(logits, block.t())
        losses.append(total.log() + top - own)
        means.append(mean.div_(total) if needs_grad else None)
    return torch.cat(losses), torch.cat(means) if needs_grad else None


@in_float32
def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float = 0.2,
    extra: Optional[Tensor] = None,
    num_queries: Optional[float] = None,
) -> Tensor:
    r"""Return the InfoNCE of queries against one positive key each and a shared queue.

    .. math:: L = -\frac{1}{M} \sum_i \log
        \frac{\exp(q_i \cdot k_i / \tau)}
             {\exp(q_i \cdot k_i / \tau) + \sum_j \exp(q_i \cdot n_j / \tau)}

    MoCo (https://arxiv.org/abs/1911.05722), equation 1; DenseCL
    (https://arxiv.org/abs/2011.09157), equations 1 and 2. Computed in float32
    whatever the autocast state. A large M×K matrix of logits is never held: it is computed in
    blocks.

    With ``extra`` the denominator has one more term, :math:`\exp(q_i \cdot e_i / \tau)`: a negative
    of each query alone, as in RegionCL (https://arxiv.org/abs/2111.12309).

    Args:
        query (Tensor): M×C, normalised by the caller.
        key (Tensor): M×C, the positive of each query, normalised.
        queue (Tensor): C×K, the negatives, normalised. A constant: it gets no
            gradient, and may be overwritten once the loss is computed.
        temperature (float): :math:`\tau` > 0. Defaults to 0.2.
        extra (Tensor, optional): M×C, normalised, a constant: it gets no gradient.
        num_queries (float, optional): Number to divide the sum over rows by instead of M, for
            processes with different numbers of queries: those of all processes over the number of
            processes. M may then be 0.

    Returns:
        Tensor: The mean over rows, a scalar; 0 without a query.

    Examples:
        >>> q = F.normalize(torch.randn(32, 128), dim=1)
        >>> k = F.normalize(torch.randn(32, 128), dim=1)
        >>> queue = F.normalize(torch.randn(128, 65536), dim=0)
        >>> loss = info_nce(q, k, queue, temperature=0.2)
    """
    matrices = query.dim() == queue.dim() == 2
    if (
        not matrices
        or query.shape != key.shape
        or queue.size(0) != query.size(1)
        or not (len(query) or num_queries is not None)
    ):
        raise InputError(
            'info_nce takes query M×C, key M×C and queue C×K, M at least 1, got '
            f'{tuple(query.shape)}, {tuple(key.shape)} and {tuple(queue.shape)}'
        )
    loss = _InfoNCE.apply(query, key, queue.detach(), temperature)  # M
    if extra is not None:
        if extra.shape != query.shape:
            raise InputError(
                f'extra must be {tuple(query.shape)}, as query is, got {tuple(extra.shape)}'
            )
        # with logits p of key, x of extra: −log(e^p / (e^p + Σ + e^x)) = log(e^L + e^(x − p))
        loss = torch.logaddexp(loss, (query * (extra.detach() - key)).sum(1) / temperature)
    # 0 / ε = 0 where there is none
    return loss.mean() if num_queries is None else loss.sum() / max(num_queries, 1e-6)
