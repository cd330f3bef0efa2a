# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compute the statistics of features that the health monitor logs."""

from math import ceil, log

import torch
from torch import Tensor

MAX_ROWS = 1024  # feature vectors in a statistic


def subsample_rows(x: Tensor) -> Tensor:
    """Return at most 1024 of the rows, evenly spaced."""
    return x[:: max(ceil(len(x) / MAX_ROWS), 1)]


def flatten_rows(x: Tensor) -> Tensor:
    """Flatten N×C×S to (N·S)×C."""
    return x.transpose(1, 2).flatten(0, 1)


def negative_similarity(query: Tensor, key: Tensor) -> Tensor:
    """Return the mean cosine of features of different images.

    Args:
        query (Tensor): N×C×S, normalised over C.
        key (Tensor): N×C×T, likewise.

    Returns:
        Tensor: A scalar in [-1, 1]; NaN where there is one image.
    """
    return mean_of_others(
        *(x.transpose(1, 2) for x in (query, key)),
        *(torch.ones_like(x[:, 0], dtype=torch.bool) for x in (query, key)),
    )


def mean_of_others(query: Tensor, key: Tensor, taken_q: Tensor, taken_k: Tensor) -> Tensor:
    """Return the mean cosine of those rows that are taken and belong to different images.

    The sum of all products of rows is the product of the sums of the rows: there is no matrix of
    pairs.

    Args:
        query (Tensor): N×S×C, normalised; S rows of each image.
        key (Tensor): N×T×C, normalised.
        taken_q (Tensor): N×S, bool.
        taken_k (Tensor): N×T, bool.

    Returns:
        Tensor: A scalar in [-1, 1]; NaN where there is no such pair.
    """
    total_q, total_k = (
        torch.where(taken.unsqueeze(2), rows.double(), 0).sum(1)  # NxC
        for rows, taken in ((query, taken_q), (key, taken_k))
    )
    number_q, number_k = (taken.double().sum(1) for taken in (taken_q, taken_k))  # N
    total = (total_q.sum(0) * total_k.sum(0)).sum() - (total_q * total_k).sum()
    number = number_q.sum() * number_k.sum() - (number_q * number_k).sum()
    return (total / number).float()


def match_entropy(match: Tensor) -> Tensor:
    """Return the entropy of the locations that an image's queries are matched with, over its
    largest value.

    Args:
        match (Tensor): N×S, indices.

    Returns:
        Tensor: A scalar in [0, 1], the mean over images; NaN for S = 1.
    """
    if match.size(1) == 1:
        return torch.full((), float('nan'), device=match.device)
    # the share of each location, so that the mean over queries is the sum over their matches
    share = (match[:, :, None] == match[:, None]).double().mean(2)  # NxS
    return -share.log().mean() / log(match.size(1))
