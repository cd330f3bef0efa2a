# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DenseSiam.

Losses: one direction of the pixel loss, with the views' alignment; of the segmentation variant the
segmentation loss of a view with its class weights, and one direction of the region loss, at 80×80
locations, 27 classes and 128 channels.
Floor: backbone and both projectors of both views, forward and backward; both predictors on both.
Of the segmentation variant: backbone, decoder, both projectors and predictors of both views; the
matrix products that cut the views' overlap and those of regions; projector and predictor on the
regions.
"""

import common
import models
import torch
from floors import forward_backward, last_map, leaf, maps_of, matrix_products, product
from torch.nn.functional import one_hot

from mmdense.models import DenseSiam
from mmdense.models.losses import (
    negative_cosine,
    region_contrast,
    region_embeddings,
    self_labelling,
)
from mmdense.models.utils import align_maps

SETTING = ''
TARGET = 1.03
GPU = False
PEERS = {}
MORE = {
    'step-densesiam-segmentation': 'step.py densesiam --model densesiam_unsup-seg --depth 18 '
    '--size 320 --batch-size 4 --rounds 7 CLOCK'
}


def cosine_written_out(prediction, target, box, other):
    """Return the docs' pixel loss, one direction, all of whose images overlap."""
    p = align_maps(prediction, box, other)
    z = align_maps(target, other, box).detach()
    p, z = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (p, z))
    return -(p * z).sum(1).mean()


def segmentation_written_out(scores):
    """Return the docs' segmentation loss of a view."""
    best = one_hot(scores.argmax(1), scores.size(1)).permute(0, 3, 1, 2)  # NxKxHxW
    weight = best.float().mean((0, 2, 3))
    loss = -scores.log_softmax(1)
    return (best * weight[:, None, None] * loss).sum(1).mean()


def region_written_out(maps, scores, key):
    """Return the docs' region loss, one direction, without projector and predictor."""
    e = (scores.softmax(1)[:, :, None] * maps[:, None]).sum((3, 4))  # NxKxC
    h, g = (x / x.norm(dim=2, keepdim=True) for x in (e, key))
    logits = torch.einsum('nkc,nlc->nkl', h, g) / 0.1
    return -logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean()


def losses(args):
    n, grid = args.batch_size, args.size // 32
    prediction, target = torch.randn(2, n, 2048, grid, grid, device=args.device)
    prediction.requires_grad_()
    boxes = models.random_boxes(n, args.device)
    weight = torch.full((n,), 1 / n, device=args.device)

    def pixel():
        p, z = align_maps(prediction, *boxes), align_maps(target, *boxes[::-1])
        return negative_cosine(p, z, weight)

    few = max(1, n // 8)  # the maps are large
    maps, scores = (torch.randn(few, c, 80, 80, device=args.device) for c in (128, 27))
    key = torch.randn(few, 27, 128, device=args.device)
    maps.requires_grad_(), scores.requires_grad_()
    return {
        'Pixel': (
            {
                'mmdense': pixel,
                'written out': lambda: cosine_written_out(prediction, target, *boxes),
            },
            [prediction],
        ),
        'Segmentation': (
            {
                'mmdense': lambda: self_labelling(scores, DenseSiam._class_shares([scores])[0]),
                'written out': lambda: segmentation_written_out(scores),
            },
            [scores],
        ),
        'Region': (
            {
                'mmdense': lambda: region_contrast(region_embeddings(maps, scores), key),
                'written out': lambda: region_written_out(maps, scores, key),
            },
            [maps, scores],
        ),
    }


def segmentation_floor(model, views, args):
    head, number = model.region_head, len(views[0]) * model.num_groups

    def through(module, inputs):
        """Forward and backward of a module; its outputs, as further inputs."""
        with torch.no_grad(), common.autocast(args):
            outputs = [leaf(module(x)) for x in inputs]
        return forward_backward(module, inputs, model, args), outputs

    with torch.no_grad(), common.autocast(args):
        stages = [[leaf(stage) for stage in model.backbone(view)] for view in views]
    parts = {'backbone': forward_backward(lambda x: list(model.backbone(x)), views, model, args)}
    parts['decoder'], maps = through(model.decoder, stages)
    parts['projector'], scores = through(model.neck, maps)
    parts['predictor'], _ = through(model.predictor, scores)
    parts['second projector'], more = through(model.auxiliary_neck, maps)
    parts['second predictor'], _ = through(model.auxiliary_predictor, more)
    vectors = [torch.randn(number, maps[0].size(1), device=args.device) for _ in views]
    parts['projector of regions'], z = through(head.projector, [leaf(v) for v in vectors])
    parts['predictor of regions'], _ = through(head.predictor, z)
    n, c, *grid = maps[0].shape
    locations = (n, model.num_groups, grid[0] * grid[1]), (n, grid[0] * grid[1], c)
    rows = (n, grid[0], grid[0]), (n, grid[0], grid[1] * c)
    columns = (n * grid[0], grid[1], grid[1]), (n * grid[0], grid[1], c)
    cut = [product(*shapes, needs_grad=(False, True)) for shapes in (rows, columns)]
    parts['products'] = matrix_products([product(*locations), *cut] * len(views), args)
    return parts, None


def floor(model, views, args):
    if model.decoder is not None:
        return segmentation_floor(model, views, args)
    maps = [leaf(m) for m in maps_of(model.backbone, views, args)]
    vectors = [leaf(m.mean((2, 3))) for m in maps]
    with torch.no_grad(), common.autocast(args):
        dense = [leaf(model.neck.dense(m)) for m in maps]
        image = [leaf(model.neck.image(v)) for v in vectors]
    parts = {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'dense projector': forward_backward(model.neck.dense, maps, model, args),
        'image projector': forward_backward(model.neck.image, vectors, model, args),
        'predictor': forward_backward(model.predictor, dense, model, args),
        'image predictor': forward_backward(model.image_predictor, image, model, args),
    }
    return parts, None
