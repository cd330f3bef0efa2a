# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""PixPro.

Losses: one direction of pixel-to-propagation consistency, from projections and boxes.
Floor: backbone and projector of both views, forward and backward, and in the momentum encoder,
forward; the transform of the propagated values; the losses' matrix products.
"""

import common
import models
import torch
from floors import both_encoders, forward_backward, leaf, maps_of, matrix_products, product
from mmengine.config import Config
from torch import nn

SETTING = ''
TARGET = 1.03
PEERS = {'mmpretrain BYOL': 'byol/byol_resnet50_16xb256-coslr-200e_in1k.py'}
LOSS_OPTIONS = '--batch-size 128'


def pixel_consistency_written_out(transform, z, target, box_q, box_k):
    """Section 3.2 of https://arxiv.org/abs/2011.10043, formula by formula; p = 2,
    clamp = 0."""

    def centres(box):
        x = (torch.arange(width, device=box.device) + 0.5) / width
        y = (torch.arange(height, device=box.device) + 0.5) / height
        x = box[:, 0, None] + x * (box[:, 2] - box[:, 0])[:, None]
        y = box[:, 1, None] + y * (box[:, 3] - box[:, 1])[:, None]
        x = x[:, None, :].expand(-1, height, -1).flatten(1)
        y = y[:, :, None].expand(-1, -1, width).flatten(1)
        return torch.stack([x, y], dim=2)  # NxSx2

    def diagonal(box):
        w, h = (box[:, 2] - box[:, 0]) / width, (box[:, 3] - box[:, 1]) / height
        return (w**2 + h**2).sqrt()

    def unit(x):
        return x / x.norm(dim=1, keepdim=True)

    height, width = z.shape[2:]
    difference = centres(box_q)[:, :, None] - centres(box_k)[:, None]  # NxSxSx2
    larger = torch.maximum(diagonal(box_q), diagonal(box_k))
    distance = (difference**2).sum(3).sqrt() / larger[:, None, None]
    mask = (distance < 0.7).float()

    value = unit(transform(z).flatten(2))
    cells = unit(z.flatten(2))  # NxCxS
    similarity = torch.einsum('nci,ncj->nij', cells, cells).clamp(min=0) ** 2
    y = unit(torch.einsum('nij,ncj->nci', similarity, value))
    cosine = torch.einsum('nci,ncj->nij', y, unit(target.flatten(2)))
    return -2 * ((cosine * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)).mean()


def losses(args):
    config = Config.fromfile(str(common.CONFIGS / '_base_' / 'models' / 'pixpro_r50.py')).model
    head = models.build(config.head, 'mmdense', args)
    n, grid = args.batch_size, args.size // 32
    z, target = torch.randn(2, n, 256, grid, grid, device=args.device)
    boxes = models.random_boxes(n, args.device)
    z.requires_grad_()
    losses = {
        'mmdense': lambda: head.loss(z, target, *boxes),
        'written out': lambda: pixel_consistency_written_out(
            head.value_transform, z, target, *boxes
        ),
    }
    return {'Pixel consistency': (losses, [z, *head.parameters()])}


def floor(model, views, args):
    parts = both_encoders(model, views, args)
    with torch.no_grad(), common.autocast(args):
        z = [leaf(model.neck(m)) for m in maps_of(model.backbone, views, args)]
    transform = model.head.value_transform
    if not isinstance(transform, nn.Identity):
        parts['transform'] = forward_backward(transform, z, model, args)
    n, c, s = z[0].flatten(2).shape
    direction = [
        product((n, s, c), (n, c, s)),  # similarity of the cells of a view
        product((n, c, s), (n, s, s)),  # propagation
        product((n, s, c), (n, c, s), (True, False)),  # cosine to the target
    ]
    parts['products'] = matrix_products(2 * direction, args)
    return parts, None
