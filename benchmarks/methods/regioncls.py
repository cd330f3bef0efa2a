# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-S.

Losses: one view's region loss, from projections of 2N regions, with the predictor.
Floor: backbone of both views, as they are and mixed, forward and backward; projector and predictor
on both views, and on the regions of both.
"""

import common
import models
import torch
from floors import forward_backward, leaf, maps_of, student_passes

SETTING = ''
TARGET = 1.03
GPU = False
PEERS = {}


def cosine_written_out(prediction, target):
    """Return algorithm 1's D of https://arxiv.org/abs/2011.10566."""
    p, z = (x / x.norm(dim=1, keepdim=True) for x in (prediction, target.detach()))
    return -(p * z).sum(1).mean()


def losses(args):
    head = models.ours('regioncls', args).head
    z, target = torch.randn(2, 2 * args.batch_size, 2048, device=args.device)
    z.requires_grad_()
    losses = {
        'mmdense': lambda: head.loss(z, target),
        'written out': lambda: cosine_written_out(head.predictor([z])[0], target),
    }
    return {'Cosine of regions': (losses, [z, *head.parameters()])}


def floor(model, views, args):
    maps = maps_of(model.backbone, views, args)
    shape = 2 * len(maps[0]), maps[0].size(1), 1, 1
    maps += [torch.randn(shape, device=args.device) for _ in views]
    with torch.no_grad(), common.autocast(args):
        z = [leaf(model.neck((m,))[0]) for m in maps]
    parts = {
        **student_passes(model, views * 2, maps, args),
        'predictor': forward_backward(lambda x: model.head.predictor([x])[0], z, model, args),
    }
    return parts, None
