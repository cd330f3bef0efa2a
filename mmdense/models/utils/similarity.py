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
        key (Tensor): N×C×S, likewise.

    Returns:
        Tensor: A scalar in [-1, 1]; NaN where there is one image.
    """
    image = torch.arange(len(query), device=query.device).repeat_interleave(query.size(2))
    return mean_of_others(flatten_rows(query), flatten_rows(key), image, image)


def mean_of_others(query: Tensor, key: Tensor, image_q: Tensor, image_k: Tensor) -> Tensor:
    """Return the mean cosine of rows M×C and L×C that belong to different images.

    Args:
        query (Tensor): M×C, normalised.
        key (Tensor): L×C, normalised.
        image_q (Tensor): M, the image of every query.
        image_k (Tensor): L, the image of every key.
    """
    others = subsample_rows(image_q)[:, None] != subsample_rows(image_k)
    return (subsample_rows(query).float() @ subsample_rows(key).float().t())[others].mean()


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
