# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Formulas of papers that several algorithms share, written out."""

import torch
from torch.nn.functional import cross_entropy


def info_nce_written_out(query, key, queue):
    """Equation 1 of https://arxiv.org/abs/1911.05722."""
    positive, negative = (query * key).sum(1, keepdim=True), query @ queue
    logits = torch.cat([positive, negative], dim=1) / 0.2
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def extra_negative_written_out(query, key, queue, extra):
    """Equation 1 of https://arxiv.org/abs/1911.05722 with one more negative of each query."""
    columns = [(query * other).sum(1, keepdim=True) for other in (key, extra)]
    logits = torch.cat([*columns, query @ queue], dim=1) / 0.2
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
