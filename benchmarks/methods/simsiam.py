# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SimSiam.

Losses: one direction of the negative cosine similarity, from projections, with the predictor.
Floor: backbone and projector of both views, forward and backward; the predictor on both.
"""

import common
import models
import torch
from floors import forward_backward, last_map, leaf, maps_of
from lightly_parts import LightlyModel

SETTING = ''
TARGET = 1.03
GPU = False
SHIPPED = 'simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py'
PEERS = {'mmpretrain SimSiam': SHIPPED, 'lightly SimSiam': lambda args: LightlySimSiam(args)}


def cosine_written_out(prediction, target):
    """Return algorithm 1's D of https://arxiv.org/abs/2011.10566."""
    p, z = (x / x.norm(dim=1, keepdim=True) for x in (prediction, target.detach()))
    return -(p * z).sum(1).mean()


def losses(args):
    head = models.build(models.shipped_config(SHIPPED).model.head, 'mmpretrain', args)
    z, target = torch.randn(2, args.batch_size, 2048, device=args.device)
    z.requires_grad_()
    losses = {
        'mmdense': lambda: head.loss(z, target),
        'written out': lambda: cosine_written_out(head.predictor([z])[0], target),
    }
    return {'Cosine': (losses, [z, *head.parameters()])}


def floor(model, views, args):
    maps = [leaf(m) for m in maps_of(model.backbone, views, args)]
    with torch.no_grad(), common.autocast(args):
        z = [leaf(model.neck((m,))[0]) for m in maps]
    parts = {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'projector': forward_backward(lambda x: model.neck((x,))[0], maps, model, args),
        'predictor': forward_backward(lambda x: model.head.predictor([x])[0], z, model, args),
    }
    return parts, None


class LightlySimSiam(LightlyModel):
    """lightly's parts for SimSiam."""

    def __init__(self, args):
        super().__init__(SHIPPED, args, self.make_heads)
        self.loss = self.losses.NegativeCosineSimilarity()

    @staticmethod
    def make_heads(modules, width):
        projector = modules.SimSiamProjectionHead(width, 2048, 2048)
        return [projector, modules.SimSiamPredictionHead(2048, 512, 2048)]

    def forward(self, inputs, data_samples=None, mode='loss'):
        (predictor,) = self.heads
        z_1, z_2 = (self.encode(self.online, view) for view in inputs)
        losses = self.loss(predictor(z_1), z_2.detach()), self.loss(predictor(z_2), z_1.detach())
        return dict(loss=0.5 * sum(losses))
