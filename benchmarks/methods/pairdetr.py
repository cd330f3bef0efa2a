# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pair DETR.

Losses: the contrast of the queries of both decoders. Those of the boxes are mmdet's.
Floor: Conditional DETR's own step by mmdet, forward and backward, the backbone apart; the second
decoder, forward and backward.
"""

import models
import torch
from floors import forward_backward, leaf

from mmdense.models.losses import pair_contrast

SETTING = '300 queries, 5 objects an image'
TARGET = 1.05
GPU = False
PEERS = {}


def contrast_written_out(first, second, temperature=0.1):
    """Return equation 1 of https://arxiv.org/abs/2002.05709 for each of Q pairs of an image, the
    mean over both directions and over images."""
    loss = 0
    for a, b in zip(first, second):
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
        across, positive = (a @ b.t() / temperature).exp(), (a * b).sum(1) / temperature
        for own, others in ((a, across), (b, across.t())):
            inside = (own @ own.t() / temperature).exp()
            total = others.sum(1) + inside.sum(1) - inside.diagonal()
            loss = loss + (total.log() - positive).mean() / (2 * len(first))
    return loss


def losses(args):
    shape = args.batch_size, 300, 256
    first, second = (torch.randn(shape, device=args.device, requires_grad=True) for _ in range(2))
    losses = {
        'mmdense': lambda: pair_contrast(first, second),
        'written out': lambda: contrast_written_out(first, second),
    }
    return {'Contrast of queries': (losses, [first, second])}


def floor(model, views, args):
    _, samples = models.random_batch('mmdense pairdetr', args)
    (images,) = views
    detector = model.detector
    with torch.no_grad():
        maps = detector.backbone(images)
        features = detector.neck(maps)
        encoder_inputs, decoder_inputs = detector.pre_transformer(features, samples)
        memory = detector.forward_encoder(**encoder_inputs)['memory']

    def detect(inputs):
        state = detector.forward_transformer(detector.neck(inputs), samples)
        losses = detector.bbox_head.loss(**state, batch_data_samples=samples)
        model.matches.take(len(images))
        return sum(losses.values())

    def find_corners(memory):
        position = detector.query_embedding.weight.expand(len(memory), -1, -1)
        hidden, references = model.corner_decoder(
            query=torch.zeros_like(position),
            key=memory,
            query_pos=position,
            key_pos=decoder_inputs['memory_pos'],
            key_padding_mask=decoder_inputs['memory_mask'],
        )
        return model.corner_boxes(hidden, references)

    parts = {
        'backbone': forward_backward(detector.backbone, [images], model, args),
        'detector': forward_backward(detect, [[leaf(m) for m in maps]], model, args),
        'corner_decoder': forward_backward(find_corners, [leaf(memory)], model, args),
    }
    return parts, None
