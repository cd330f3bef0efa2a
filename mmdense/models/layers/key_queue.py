# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Sequence, Tuple

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn
from torch.nn import functional as F

from mmdense.models.utils.gather import gather_rows
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


class KeyQueue(nn.Module):
    """Keep keys of past batches, first in, first out.

    From MoCo (https://arxiv.org/abs/1911.05722, section 3.2), used by every
    algorithm here that contrasts against a queue. All of its state is
    buffers, so that a resumed run continues where it stopped, and advancing it
    needs no synchronisation with the device.

    Args:
        feat_dim (int): Channels C of a key.
        queue_len (int): Number of keys K.

    Attributes:
        keys (Tensor): C×K, columns of length 1; random ones at the start.
        ptr (Tensor): Column the next key goes to, shape (1, ).
        filled (Tensor): How many columns hold real keys, shape (1, ).
    """

    def __init__(self, feat_dim: int, queue_len: int) -> None:
        super().__init__()
        check_counts(feat_dim=feat_dim, queue_len=queue_len)
        self.register_buffer('keys', F.normalize(torch.randn(feat_dim, queue_len), dim=0))
        self.register_buffer('ptr', torch.zeros(1, dtype=torch.long))
        self.register_buffer('filled', torch.zeros(1, dtype=torch.long))

    @property
    def feat_dim(self) -> int:
        return self.keys.size(0)

    @property
    def queue_len(self) -> int:
        return self.keys.size(1)

    def size(self) -> torch.Size:
        """Return (C, K), as of the tensor that a queue is in mmpretrain."""
        return self.keys.size()

    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by this batch's, of all processes; for
        several queues at once see :func:`enqueue`.

        Args:
            keys (Tensor): N×C, normalised; N is the same in every process.
                The order is by process, then by row.

        Raises:
            InputError: When all processes together have more keys than the
                queue has places.
        """
        enqueue((self, keys))

    @torch.no_grad()
    def enqueue_unequal(self, keys: Tensor, counts: Sequence[int]) -> None:
        """Replace the oldest keys, where processes have different numbers of keys; of more keys
        than the queue has places, the last ones are kept.

        Args:
            keys (Tensor): M×C, normalised; M may be 0.
            counts (Sequence[int]): M of each process.
        """
        self._check(keys)
        if sum(counts):
            rows = gather_rows(keys.to(self.keys.dtype), counts)
            self._push(torch.cat(rows)[-self.queue_len :])

    def _check(self, keys: Tensor) -> None:
        if keys.dim() != 2 or keys.size(1) != self.feat_dim:
            raise InputError(
                f'the queue has feat_dim={self.feat_dim}, but keys are {tuple(keys.shape)}: set '
                "feat_dim to the neck's out_channels"
            )

    def _push(self, keys: Tensor) -> None:
        """Replace the oldest keys by these."""
        num_keys = keys.size(0)
        if num_keys > self.queue_len:
            raise InputError(
                f'queue_len={self.queue_len} is smaller than the {num_keys} keys of one batch over '
                'all processes; set queue_len to several times the total batch size'
            )
        # Indices modulo K: neither must be a multiple of the other.
        columns = (self.ptr + torch.arange(num_keys, device=keys.device)) % self.queue_len
        self.keys.index_copy_(1, columns, keys.t())
        self.ptr.copy_((self.ptr + num_keys) % self.queue_len)
        self.filled.copy_((self.filled + num_keys).clamp(max=self.queue_len))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        keys = state_dict.get(f'{prefix}keys')
        same_kind = keys is not None and keys.dim() == 2 and keys.size(0) == self.feat_dim
        if same_kind and keys.size(1) != self.queue_len:
            # A queue of another length: as many of its newest keys as there is room for.
            length, ptr = keys.size(1), int(state_dict[f'{prefix}ptr'])
            filled = min(int(state_dict[f'{prefix}filled']), length, self.queue_len)
            newest = (ptr - filled + torch.arange(filled, device=keys.device)) % length
            ours = self.keys.clone()
            ours[:, :filled] = keys[:, newest]
            state_dict[f'{prefix}keys'] = ours
            state_dict[f'{prefix}ptr'] = self.ptr.new_full((1,), filled % self.queue_len)
            state_dict[f'{prefix}filled'] = self.filled.new_full((1,), filled)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'feat_dim={self.feat_dim}, queue_len={self.queue_len}'


@torch.no_grad()
def enqueue(*pairs: Tuple[KeyQueue, Tensor]) -> None:
    """Replace the oldest keys of several queues, in one exchange between the processes.

    Args:
        pairs (tuple[KeyQueue, Tensor]): A queue and its keys N×C; N is the
            same for all.
    """
    queues, keys = zip(*pairs)
    for queue, part in pairs:
        queue._check(part)
    joined = torch.cat([part.detach().to(queues[0].keys.dtype) for part in keys], dim=1)
    gathered = torch.cat(all_gather(joined), dim=0)
    for queue, part in zip(queues, gathered.split([part.size(1) for part in keys], dim=1)):
        queue._push(part)


def unflatten_queues(module: nn.Module, state_dict: dict, prefix: str = '') -> None:
    """Rename other packages' queues in a state dict, in place.

    MoCo, OpenSelfSup and mmpretrain keep a queue as two flat buffers, ``NAME``
    and ``NAME_ptr``. They become the buffers of the :class:`KeyQueue` called
    ``NAME`` in ``module``, which is taken to be full.

    Args:
        module (nn.Module): Owner of the queues.
        state_dict (dict): About to be loaded into ``module``.
        prefix (str): Of ``module`` in ``state_dict``.
    """
    for name, child in module.named_modules(prefix=prefix.rstrip('.')):
        if isinstance(child, KeyQueue) and name in state_dict:
            state_dict[f'{name}.keys'] = state_dict.pop(name)
            state_dict[f'{name}.ptr'] = state_dict.pop(f'{name}_ptr', child.ptr).reshape(1)
            length = state_dict[f'{name}.keys'].size(1)
            state_dict[f'{name}.filled'] = torch.full_like(child.filled, length)
