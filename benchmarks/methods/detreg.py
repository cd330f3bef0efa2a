# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DETReg.

Losses: the embeddings of the matched queries of the last layer. Those of the boxes are mmdet's.
Floor: the frozen backbone on the images, and the frozen network on the crops of the proposals that
the images show, forward; mmdet's own step of the detector from the backbone's maps, with the
proposals as boxes: projections, transformer, head, matching and losses, forward and backward; the
two layers that predict embeddings, forward and backward.
"""

import models
import torch
from floors import forward, forward_backward, leaf

from mmdense.models.losses import object_embedding
from mmdense.models.selfsup.detector import box_targets, image_sizes
from mmdense.models.selfsup.detreg import find_targets

SETTING = '30 proposals, 300 queries'
TARGET = 1.05
GPU = False
PEERS = {}
PROPOSALS = 30
CHANNELS = 512


def difference_written_out(prediction, target):
    """Return the mean absolute difference of each pair, pair by pair."""
    return sum((p - z).abs().mean() for p, z in zip(prediction, target))


def losses(args):
    shape = args.batch_size * PROPOSALS, CHANNELS
    prediction = torch.randn(shape, device=args.device, requires_grad=True)
    target = torch.randn(shape, device=args.device)
    losses = {
        'mmdense': lambda: object_embedding(prediction, target) / len(target),
        'written out': lambda: difference_written_out(prediction, target) / len(target),
    }
    return {'Embeddings of proposals': (losses, [prediction])}


def floor(model, views, args):
    _, samples = models.random_batch('mmdense detreg', args)
    images = views[0]
    targets = find_targets(samples, len(views) - 1)
    crops = torch.cat(views[1:])[torch.tensor(targets.crops).to(images.device)]
    boxes = targets.boxes.to(images).split(targets.counts)
    sizes = image_sizes(images)
    for size, target in zip(sizes, box_targets(boxes, model.label, sizes)):
        size.gt_instances = target
    detector, maps = model.detector, model.frozen_maps(images)
    matched = torch.randn(sum(targets.counts), detector.embed_dims).to(images)

    def detect(inputs):
        state = detector.forward_transformer(detector.neck(inputs), sizes)
        losses = detector.bbox_head.loss(**state, batch_data_samples=sizes)
        model.matches.take(len(images))
        return [sum(value.sum() for value in losses.values())]

    parts = {
        'backbone': forward(model.backbone, [images], args),
        'crop_backbone': forward(model.object_encoder, [crops], args),
        'detector': forward_backward(detect, [[leaf(m) for m in maps]], model, args),
        'embeddings': forward_backward(model.feature_embed, [leaf(matched)], model, args),
    }
    return parts, f'{len(crops)} crops'
