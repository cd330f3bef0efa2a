# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""BYOL.

Losses: one direction, from predictions.
Floor: backbone and projector of both views, forward and backward, and in the momentum encoder,
forward; the predictor on both.
"""

import torch
from floors import predicting_encoders
from lightly_parts import LightlyModel

from mmdense.models.losses import cosine_distance

SETTING = ''
TARGET = 1.03
GPU = False
SHIPPED = 'byol/byol_resnet50_16xb256-coslr-200e_in1k.py'
PEERS = {'mmpretrain BYOL': SHIPPED, 'lightly BYOL': lambda args: LightlyBYOL(args)}


def distance_written_out(prediction, target):
    """Return equation 2 of https://arxiv.org/abs/2006.07733."""
    p, z = (x / x.norm(dim=1, keepdim=True) for x in (prediction, target))
    return (p - z).square().sum(1).mean()


def losses(args):
    prediction, target = torch.randn(2, args.batch_size, 256, device=args.device)
    prediction.requires_grad_()
    losses = {
        'mmdense': lambda: cosine_distance(prediction, target),
        'written out': lambda: distance_written_out(prediction, target),
    }
    return {'Distance': (losses, [prediction])}


def floor(model, views, args):
    return predicting_encoders(model, views, args), None


class LightlyBYOL(LightlyModel):
    """lightly's parts for BYOL."""

    def __init__(self, args):
        super().__init__(SHIPPED, args, self.make_heads, twin=True)
        self.loss = self.losses.NegativeCosineSimilarity()

    @staticmethod
    def make_heads(modules, width):
        projector = modules.BYOLProjectionHead(width, 4096, 256)
        return [projector, modules.BYOLPredictionHead(256, 4096, 256)]

    def forward(self, inputs, data_samples=None, mode='loss'):
        (predictor,) = self.heads
        with torch.no_grad():
            self.utils.update_momentum(self.online, self.twin, m=0.99)
            z_1, z_2 = (self.encode(self.twin, view) for view in inputs)
        p_1, p_2 = (predictor(self.encode(self.online, view)) for view in inputs)
        return dict(loss=0.5 * (self.loss(p_1, z_2) + self.loss(p_2, z_1)))
