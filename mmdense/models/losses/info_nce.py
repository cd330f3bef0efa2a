# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdense.models.utils import in_float32
from mmdense.utils.errors import InputError

# A block of logits is ROWS×KEYS. Both sides are long enough for the matrix
# products to run at full speed, and a CPU is not kept waiting by many small steps (16 MiB);
# a GPU takes 64 MiB.
_BLOCK = {'cpu': (2048, 2048), 'cuda': (2048, 8192)}


class _StreamedInfoNCE(torch.autograd.Function):
    """Compute the InfoNCE of each row, one block of the M×K logits at a time.

    The loss of a row and its gradient need the same softmax, so forward
    computes both while a block is at hand, rescaling what it has summed when
    a larger logit comes (the online softmax of Milakov and Gimelshein,
    https://arxiv.org/abs/1805.02867). Backward only scales: two matrix
    products in all.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        rows, keys = _BLOCK['cpu' if query.device.type == 'cpu' else 'cuda']
        loss = query.new_empty(query.size(0))
        prob_positive = torch.empty_like(loss)
        mean_negative = torch.zeros_like(query) if needs_grad else None  # Σ_j p_j queue_j

        scaled = query / temperature
        for i in range(0, query.size(0), rows):
            part = slice(i, i + rows)
            positive = (scaled[part] * key[part]).sum(1)
            top, total = positive, torch.ones_like(positive)
            for j in range(0, queue.size(1), keys):
                block = queue[:, j : j + keys]
                logits = scaled[part] @ block
                last, top = top, torch.maximum(top, logits.amax(1))
                shrink = (last - top).exp_()
                logits.sub_(top.unsqueeze(1)).exp_()
                total = total * shrink + logits.sum(1)
                if needs_grad:
                    mean_negative[part].mul_(shrink.unsqueeze(1)).addmm_(logits, block.t())
            loss[part] = total.log() + top - positive
            prob_positive[part] = (positive - top).exp_() / total
            if needs_grad:
                mean_negative[part].div_(total.unsqueeze(1))
        if needs_grad:
            # d loss / d query = (Σ_j p_j queue_j + (p_+ − 1) key) / τ
            # d loss / d key = (p_+ − 1) query / τ
            pull = (prob_positive - 1).unsqueeze(1)
            grad_query = mean_negative.addcmul_(pull, key).div_(temperature)
            ctx.save_for_backward(grad_query, pull / temperature, query)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad_query, pull, query = ctx.saved_tensors
        grad_loss = grad_loss.unsqueeze(1)
        grad_key = grad_loss * pull * query if ctx.needs_input_grad[1] else None
        return grad_loss * grad_query, grad_key, None, None


@in_float32
def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    r"""Return the InfoNCE of queries against one positive key each and a shared queue.

    .. math:: L = -\frac{1}{M} \sum_i \log
        \frac{\exp(q_i \cdot k_i / \tau)}
             {\exp(q_i \cdot k_i / \tau) + \sum_j \exp(q_i \cdot n_j / \tau)}

    MoCo (https://arxiv.org/abs/1911.05722), equation 1; DenseCL
    (https://arxiv.org/abs/2011.09157), equations 1 and 2. Computed in float32
    whatever the autocast state, and in blocks: it never holds the M×K matrix.

    Args:
        query (Tensor): M×C, normalised by the caller.
        key (Tensor): M×C, the positive of each query, normalised.
        queue (Tensor): C×K, the negatives, normalised. A constant: it gets no
            gradient, and may be overwritten once the loss is computed.
        temperature (float): :math:`\tau` > 0. Defaults to 0.2.

    Returns:
        Tensor: The mean over rows, a scalar.

    Examples:
        >>> q = F.normalize(torch.randn(32, 128), dim=1)
        >>> k = F.normalize(torch.randn(32, 128), dim=1)
        >>> queue = F.normalize(torch.randn(128, 65536), dim=0)
        >>> loss = info_nce(q, k, queue, temperature=0.2)
    """
    matrices = query.dim() == queue.dim() == 2
    if not matrices or query.shape != key.shape or queue.size(0) != query.size(1) or not len(query):
        raise InputError(
            'info_nce takes query M×C, key M×C and queue C×K, M at least 1, got '
            f'{tuple(query.shape)}, {tuple(key.shape)} and {tuple(queue.shape)}'
        )
    return _StreamedInfoNCE.apply(query, key, queue.detach(), temperature).mean()
