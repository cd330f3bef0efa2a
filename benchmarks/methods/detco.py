# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DetCo.

Losses: all twelve of N images, four stages by three pairings, against eight queues of K keys.
Floor: backbone and heads on the query's view and patches, forward and backward; on the key's in the
momentum encoder, forward; the losses' matrix products.
"""

import common
import torch
from floors import forward, forward_backward, leaf, matrix_products, product
from formulas import info_nce_written_out
from torch.nn.functional import normalize

from mmdense.models.losses import info_nce
from mmdense.models.utils import split_patches

SETTING = 'K = {queue_len}'
TARGET = 1.02
PEERS = {}


def losses(args):
    def vectors(*shape, dim=-1):
        return normalize(torch.randn(4, *shape, device=args.device), dim=dim)

    n, k = args.batch_size, args.queue_len
    query = {kind: vectors(n, 128).requires_grad_() for kind in ('global', 'local')}
    key = {kind: vectors(n, 128) for kind in query}
    queue = {kind: vectors(128, k, dim=1) for kind in query}
    pairs = (('global', 'global'), ('local', 'local'), ('local', 'global'))  # query, key and queue

    def by(loss):
        return lambda: sum(
            weight * loss(query[q][i], key[kind][i], queue[kind][i])
            for i, weight in enumerate((0.1, 0.4, 0.7, 1.0))
            for q, kind in pairs
        )

    losses = {'mmdense': by(info_nce), 'written out': by(info_nce_written_out)}
    return {'Twelve InfoNCE': (losses, list(query.values()))}


def floor(model, inputs, args):
    views, patches = inputs[0], split_patches(inputs[2], model.neck.grid)
    backbone, neck = model.encoder_k.module
    with torch.no_grad(), common.autocast(args):
        maps, patch_maps = model.backbone(views), model.backbone(patches)
    leaves = [leaf(m) for m in (*maps, *patch_maps)]

    def heads(neck):
        return lambda x: neck(x[: len(maps)]) + neck.forward_local(x[len(maps) :])

    n, c, k = len(views), model.queues_global[0].feat_dim, args.queue_len
    parts = {
        'backbone': forward_backward(model.backbone, [views, patches], model, args),
        'twin_backbone': forward(backbone, [views, patches], args),
        'heads': forward_backward(heads(model.neck), [leaves], model, args),
        'twin_heads': forward(heads(neck), [[*maps, *patch_maps]], args),
        'products': matrix_products([product((n, c), (c, k), (True, False))] * 12, args),
    }
    return parts, f'patches of {args.patch_size} px'
