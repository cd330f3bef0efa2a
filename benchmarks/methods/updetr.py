# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""UP-DETR.

Losses: the reconstruction of patches' features by the matched queries of six layers. Those of the
boxes are mmdet's.
Floor: the frozen backbone on the images and on the patches, forward; mmdet's own step of the
detector from the backbone's maps, with as many boxes as there are patches: transformer, head,
matching and losses, forward and backward; the two layers of each patch, forward and backward.
"""

import models
import torch
from floors import forward, forward_backward, leaf
from torch.nn.functional import linear

from mmdense.models.losses import feature_reconstruction
from mmdense.models.selfsup.detector import box_targets, image_sizes

SETTING = '10 patches, 100 queries'
TARGET = 1.05
GPU = False
PEERS = {}
PATCHES = 10
LAYERS = 6


def distance_written_out(prediction, target):
    """Return equation 3's numerator of https://arxiv.org/abs/2011.09094, pair by pair."""
    pairs = zip(prediction, target)
    return sum(((p / p.norm() - z / z.norm()) ** 2).sum() for p, z in pairs)


def losses(args):
    shape = LAYERS * args.batch_size * PATCHES, 2048
    prediction = torch.randn(shape, device=args.device, requires_grad=True)
    target = torch.randn(shape, device=args.device)
    count = args.batch_size * PATCHES
    losses = {
        'mmdense': lambda: feature_reconstruction(prediction, target) / count,
        'written out': lambda: distance_written_out(prediction, target) / count,
    }
    return {'Features of patches': (losses, [prediction])}


def floor(model, views, args):
    _, samples = models.random_batch('mmdense updetr', args)
    images, patches = views[0], torch.cat(views[1:])
    boxes = torch.stack([sample.proposals for sample in samples]).to(images)
    sizes = image_sizes(images)
    for size, target in zip(sizes, box_targets(boxes, model.label, sizes)):
        size.gt_instances = target
    detector, maps = model.detector, model.frozen_maps(images)
    features = model.patch_features(views[1:])
    matched = torch.randn(LAYERS * args.batch_size * PATCHES, detector.embed_dims).to(images)

    def detect(inputs):
        state = detector.forward_transformer(detector.neck(inputs), sizes)
        losses = detector.bbox_head.loss(**state, batch_data_samples=sizes)
        model.matches.take(len(images))
        return sum(losses.values())

    def queries(inputs):
        weight, bias = model.patch2query.parameters()
        return linear(inputs[0], weight, bias), model.feature_align(inputs[1])

    parts = {
        'backbone': forward(model.backbone, [images], args),
        'patch_backbone': forward(model.backbone, [patches], args),
        'detector': forward_backward(detect, [[leaf(m) for m in maps]], model, args),
        'queries': forward_backward(queries, [[leaf(features), leaf(matched)]], model, args),
    }
    return parts, None
