# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Callable, List, Sequence, Tuple

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, distributed


@torch.no_grad()
def shuffled_forward(
    encode: Callable[..., Tuple[Tensor, ...]], *inputs: Tensor, seed: int
) -> Tuple[Tensor, ...]:
    """Encode keys with BatchNorm statistics of images from all processes.

    Shuffling BN of MoCo (https://arxiv.org/abs/1911.05722, section 3.3): a key
    must not share its BatchNorm batch with its query, or the statistics give
    the answer away. With one process there is nothing to exchange and the
    batch goes in as it is.

    Each row travels once there and once back. (MoCo's code and mmpretrain's
    gather the whole batch of all processes on each of them, twice.)

    Args:
        encode (Callable): Maps a batch to a tuple of tensors, N first.
        inputs (Tensor): One or more N×…, N the same in every process. All of
            them are shuffled alike.
        seed (int): Of the order, the same in every process, and another at
            every step.

    Returns:
        Tuple[Tensor, ...]: What ``encode`` returns for ``inputs``, rows in the
        order of these.
    """
    world, rank = get_world_size(), get_rank()
    if world == 1:
        return encode(*inputs)
    number = len(inputs[0])
    order = _draw_order(number, seed)
    owner = order // number
    # my rows by where they go, and the rows that I encode by where they come from
    send = order[owner == rank] - rank * number
    receive = owner[rank].argsort(stable=True)
    sent = (owner == rank).sum(1).tolist()
    received = owner[rank].bincount(minlength=world).tolist()

    shuffled = _exchange(inputs, send, sent, receive, received)
    return tuple(_exchange(encode(*shuffled), receive, received, send, sent))


def encoded_rows(number: int, seed: int) -> List[int]:
    """Return the rows of the joined batch that this process encodes in :func:`shuffled_forward`.

    Args:
        number (int): N, rows in each process.
        seed (int): Seed of the order.
    """
    if get_world_size() == 1:
        return list(range(number))
    return _draw_order(number, seed)[get_rank()].tolist()


def _draw_order(number: int, seed: int) -> Tensor:
    """Draw W×N, the same in every process: process d encodes the rows order[d]."""
    rng = torch.Generator().manual_seed(seed)
    world = get_world_size()
    return torch.randperm(world * number, generator=rng).view(world, number)


def _exchange(
    tensors: Sequence[Tensor],
    send: Tensor,
    sent: List[int],
    receive: Tensor,
    received: List[int],
) -> List[Tensor]:
    """Exchange rows with other processes in one call.

    Args:
        tensors (Sequence[Tensor]): N×…, all alike.
        send (Tensor): N, which rows go, by process.
        sent (List[int]): How many go to each process.
        receive (Tensor): N, where what comes belongs, by process.
        received (List[int]): How many come from each.
    """
    device = tensors[0].device
    send, place = (i.to(device, non_blocking=True) for i in (send, receive.argsort()))
    rows = torch.cat([x[send].reshape(len(x), -1) for x in tensors], dim=1)
    result = torch.empty_like(rows)
    distributed.all_to_all_single(result, rows, received, sent)
    parts = result[place].split([x[0].numel() for x in tensors], dim=1)
    return [part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, tensors)]
