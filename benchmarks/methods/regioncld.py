# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-D.

Losses: DenseCL's dense loss; the region loss is RegionCL-M's.
Floor: backbone of view 1, as it is and mixed, forward and backward, and of view 2 in the momentum
encoder, forward; the necks; the matrix products and softmaxes of the three losses.
"""

import torch
from floors import (
    forward,
    forward_backward,
    last_map,
    leaf,
    maps_of,
    queue_products,
    student_passes,
)
from formulas import info_nce_written_out
from torch.nn.functional import normalize

from mmdense.models.losses import info_nce

SETTING = 'K = {queue_len}'
TARGET = 1.03
GPU = False
PEERS = {}


def losses(args):
    rows = args.batch_size * (args.size // 32) ** 2
    query, key = normalize(torch.randn(2, rows, 128, device=args.device), dim=2)
    query.requires_grad_()
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    losses = {
        'mmdense': lambda: info_nce(query, key, queue, 0.2),
        'written out': lambda: info_nce_written_out(query, key, queue),
    }
    return {'Dense InfoNCE': (losses, [query])}


def floor(model, views, args):
    backbone, neck = model.encoder_k.module
    (feature,) = maps_of(model.backbone, views[:1], args)
    number, locations = len(feature), feature.flatten(2).size(2)
    regions = leaf(torch.randn(2 * number, feature.size(1), device=args.device))
    parts = {
        **student_passes(model, [views[0]] * 2, [feature], args),
        'region_neck': forward_backward(model.neck.mlp, [regions], model, args),
        'momentum_backbone': forward(last_map(backbone), views[1:], args),
        'momentum_neck': forward(lambda x: neck((x,)), [feature], args),
        **queue_products((number, number * locations, 2 * number), args),
    }
    return parts, None
