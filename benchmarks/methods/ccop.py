# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""CCOP.

Losses: InfoNCE of the regions against K keys, of all processes' number; the margin loss between the
regions of an image. Ten regions an image.
Floor: backbone, pyramid and projector of view 1, forward and backward, and of view 2 in the
momentum
encoder, forward; pooling and projector of the regions, and in the momentum encoder of 11 copies of
each; the matrix products and softmaxes of both contrasts.
"""

import models
import torch
from floors import forward, forward_backward, leaf, queue_products
from formulas import info_nce_written_out
from torch.nn.functional import normalize

from mmdense.models.heads.slot_contrast_head import true_rows
from mmdense.models.layers import pool_pyramid
from mmdense.models.losses import info_nce, intra_image_margin

SETTING = 'K = {queue_len}'
TARGET = 1.03
GPU = False
PEERS = {}
READS = 1  # the numbers of regions


def margin_written_out(similarity, valid):
    """Return the docs' margin loss, pair by pair."""
    own = similarity.diagonal(dim1=1, dim2=2)
    image, a, b = valid.nonzero(as_tuple=True)
    return (similarity[image, a, b] - own[image, b] + 0.4).clamp(min=0).mean()


def losses(args):
    n, regions = args.batch_size, 10
    query, key = normalize(torch.randn(2, n * regions, 128, device=args.device), dim=2)
    query.requires_grad_()
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    similarity = torch.rand(n, regions, regions, device=args.device, requires_grad=True)
    valid = torch.rand(n, regions, regions, device=args.device) < 0.5
    contrast = {
        'mmdense': lambda: info_nce(query, key, queue, 0.2, num_queries=len(query)),
        'written out': lambda: info_nce_written_out(query, key, queue),
    }
    margin = {
        'mmdense': lambda: intra_image_margin(similarity, valid),
        'written out': lambda: margin_written_out(similarity, valid),
    }
    return {'InfoNCE of regions': (contrast, [query]), 'Margin': (margin, [similarity])}


def floor(model, views, args):
    network = model.encoder_k.module
    _, samples = models.random_batch('mmdense ccop', args)
    regions = model.find_regions(samples, views[0])
    rows = true_rows(regions.exists, sum(regions.counts[0]))
    index, boxes = rows // regions.exists.size(1), regions.query.flatten(0, 1)[rows]
    copies = model.curriculum.copies + 1
    with torch.no_grad():
        *pyramid, last = model.trained_maps(views[0])

    def pool(maps):
        return model.region_projector(pool_pyramid(maps, boxes, index))

    def pool_copies(maps):
        many = boxes.repeat_interleave(copies, 0), index.repeat_interleave(copies)
        return network['region_projector'](pool_pyramid(maps, *many))

    parts = {
        'backbone': forward_backward(model.trained_maps, views[:1], model, args),
        'momentum_backbone': forward(
            lambda x: network['neck'](network['backbone'](x)), views[1:], args
        ),
        'projector': forward_backward(
            lambda x: model.projector(x.mean((2, 3))), [leaf(last)], model, args
        ),
        'momentum_projector': forward(lambda x: network['projector'](x.mean((2, 3))), [last], args),
        'regions': forward_backward(pool, [[leaf(level) for level in pyramid]], model, args),
        'momentum_regions': forward(pool_copies, [pyramid], args),
        **queue_products((args.batch_size, len(rows)), args),
    }
    return parts, f'{len(rows)} regions'
