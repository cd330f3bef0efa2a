# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""LC-loss.

Losses: one direction of the local loss, from predictions and boxes; BYOL's is in its own file.
Floor: backbone and both projectors of both views, forward and backward, and in the momentum
encoder, forward; both predictors on both; the local loss's matrix products.
"""

import common
import models
import torch
from floors import (
    forward_backward,
    leaf,
    maps_of,
    matrix_products,
    predicting_encoders,
    product,
)

from mmdense.models import LocalContrastHead

SETTING = ''
TARGET = 1.03
GPU = False
PEERS = {}
LOSS_OPTIONS = '--batch-size 128'


def local_contrast_written_out(z, target, box, other):
    """Return the docs' local loss, one direction, formula by formula; τ = 0.1."""

    def unit(x):
        return x / x.norm(dim=1, keepdim=True)

    rows, columns = z.shape[2:]
    x = (torch.arange(columns, device=box.device) + 0.5) / columns
    y = (torch.arange(rows, device=box.device) + 0.5) / rows
    x, y = x.repeat(rows), y.repeat_interleave(columns)  # S
    # centers in the image, then in the other view
    x = box[:, 0, None] + x * (box[:, 2] - box[:, 0])[:, None]
    y = box[:, 1, None] + y * (box[:, 3] - box[:, 1])[:, None]
    x = (x - other[:, 0, None]) / (other[:, 2] - other[:, 0])[:, None]
    y = (y - other[:, 1, None]) / (other[:, 3] - other[:, 1])[:, None]
    valid = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)  # NxS
    match = (y * rows).floor() * columns + (x * columns).floor()
    match = torch.where(valid, match, torch.zeros_like(match)).long()

    cosine = torch.einsum('nci,ncj->nij', unit(z.flatten(2)), unit(target.flatten(2)))
    similarity = (cosine / 0.1).exp()
    share = similarity.gather(2, match[:, :, None])[:, :, 0] / similarity.sum(2)
    loss = -share.log() * valid
    return (loss.sum(1) / valid.sum(1).clamp(min=1)).mean()


def losses(args):
    n, grid = args.batch_size, args.size // 32
    head = LocalContrastHead()
    z, target = torch.randn(2, n, 256, grid, grid, device=args.device)
    boxes = models.random_boxes(n, args.device)
    z.requires_grad_()
    losses = {
        'mmdense': lambda: head.loss(z, target, *boxes),
        'written out': lambda: local_contrast_written_out(z, target, *boxes),
    }
    return {'Local contrast': (losses, [z])}


def floor(model, views, args):
    maps = maps_of(model.backbone, views, args)
    with torch.no_grad(), common.autocast(args):
        local = [leaf(model.neck.local_projector(m)) for m in maps]
    n, c, s = local[0].flatten(2).shape
    parts = {
        **predicting_encoders(model, views, args),
        'local_predictor': forward_backward(model.local_head.predictor, local, model, args),
        'products': matrix_products([product((n, s, c), (n, c, s), (True, False))] * 2, args),
    }
    return parts, None
