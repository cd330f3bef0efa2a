# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-M.

Losses: the region loss, InfoNCE of 2N queries against K keys and one more negative of each query.
Floor: backbone and neck of view 1, as it is and mixed, forward and backward, and of view 2 in the
momentum encoder, forward; the matrix products and softmaxes of both losses.
"""

import torch
from floors import forward, last_map, maps_of, queue_products, student_passes
from formulas import extra_negative_written_out
from torch.nn.functional import normalize

from mmdense.models.losses import info_nce

SETTING = 'K = {queue_len}'
TARGET = 1.03
GPU = False
PEERS = {}


def losses(args):
    query, key, extra = normalize(
        torch.randn(3, 2 * args.batch_size, 128, device=args.device), dim=2
    )
    query.requires_grad_()
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    losses = {
        'mmdense': lambda: info_nce(query, key, queue, 0.2, extra),
        'written out': lambda: extra_negative_written_out(query, key, queue, extra),
    }
    return {'InfoNCE with one more negative': (losses, [query])}


def floor(model, views, args):
    backbone, neck = model.encoder_k.module
    (feature,) = maps_of(model.backbone, views[:1], args)
    regions = torch.randn(2 * len(feature), feature.size(1), 1, 1, device=args.device)
    parts = {
        **student_passes(model, [views[0]] * 2, [feature, regions], args),
        'momentum_backbone': forward(last_map(backbone), views[1:], args),
        'momentum_neck': forward(lambda x: neck((x,)), [feature], args),
        **queue_products((args.batch_size, 2 * args.batch_size), args),
    }
    return parts, None
