# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError


class FeatureQueue(nn.Module):
    """Keep features of past batches of this process, the newest first, for
    :func:`read_batches` and :func:`push_batch`.

    From SwAV (https://arxiv.org/abs/2006.09882, section 3.1): more samples share the prototypes
    than a small batch has. Every process keeps its own features, and a checkpoint has those of
    all processes (:class:`mmdense.engine.CheckpointHook`).

    Args:
        queue_length (int): Features of all W processes together; a process keeps its part.
        feat_dim (int): Channels C of a feature.
        num_groups (int): Number of queues A that advance together. Defaults to 1.

    Attributes:
        features (Tensor): A×L×C with L = queue_length // W, zeros at the start.
        process_buffers (tuple[str]): Names of the buffers that differ between processes.
    """

    process_buffers = ('features',)

    def __init__(self, queue_length: int, feat_dim: int, num_groups: int = 1) -> None:
        super().__init__()
        check_counts(queue_length=queue_length, feat_dim=feat_dim, num_groups=num_groups)
        self.queue_length = queue_length
        length = queue_length // get_world_size()
        self.register_buffer('features', torch.zeros(num_groups, length, feat_dim))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        features = state_dict.get(f'{prefix}features')
        if features is not None and features.shape != self.features.shape:
            # of another number of processes, or of another length: it fills again
            state_dict[f'{prefix}features'] = torch.zeros_like(self.features)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'queue_length={self.queue_length}, feat_dim={self.features.size(2)}'


def read_batches(features: Tensor, batch: int) -> Tensor:
    """Return the features of as many complete batches as a queue has room for.

    Args:
        features (Tensor): A×L×C, the newest first.
        batch (int): Images N of a batch in this process.

    Returns:
        Tensor: A×R×C, R a multiple of N; zeros where there is none yet.

    Raises:
        InputError: When there is no room for a batch.
    """
    length = features.size(1)
    if length < batch:
        world = get_world_size()
        raise InputError(
            f'a queue of {length * world} features has no room for a batch of all processes, '
            f'{batch * world}: set queue_length to several batches, or to 0 for no queue'
        )
    return features[:, : length - length % batch]


@torch.no_grad()
def push_batch(features: Tensor, batch: Tensor) -> None:
    """Put A×N×C features in front of a queue's A×L×C, in place; the oldest N go."""
    kept = torch.cat([batch.to(features.dtype), features], dim=1)
    features.copy_(kept[:, : features.size(1)])
