# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SimCLR.

Losses: NT-Xent of 2N projections.
Floor: backbone and projector of both views as one batch, forward and backward; the loss's matrix
products.
"""

import torch
from floors import forward_backward, last_map, leaf, maps_of, matrix_products, product
from lightly_parts import LightlyModel
from torch.nn.functional import cross_entropy, normalize

from mmdense.models.losses import nt_xent

SETTING = ''
TARGET = 1.03
GPU = False
LOSS_OPTIONS = '--batch-size 512'  # the batches that it is for
SHIPPED = 'simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py'
PEERS = {'mmpretrain SimCLR': SHIPPED, 'lightly SimCLR': lambda args: LightlySimCLR(args)}


def nt_xent_written_out(first, second, temperature):
    """Return the sum over both directions of equation 1 of https://arxiv.org/abs/2002.05709."""
    z = torch.cat([first, second])
    logits = (z @ z.t() / temperature).fill_diagonal_(float('-inf'))
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return 2 * cross_entropy(logits, partner)


def losses(args):
    first, second = normalize(torch.randn(2, args.batch_size, 128, device=args.device), dim=2)
    pair = [first.requires_grad_(), second.requires_grad_()]
    losses = {
        'mmdense': lambda: nt_xent(first, second, 0.1),
        'written out': lambda: nt_xent_written_out(first, second, 0.1),
    }
    return {'NT-Xent': (losses, pair)}


def floor(model, views, args):
    joined = [torch.cat(views)]
    maps = [leaf(m) for m in maps_of(model.backbone, joined, args)]
    rows = args.batch_size
    parts = {
        'backbone': forward_backward(last_map(model.backbone), joined, model, args),
        'projector': forward_backward(lambda x: model.neck((x,))[0], maps, model, args),
        'products': matrix_products([product((rows, 128), (128, rows))] * 4, args),
    }
    return parts, None


class LightlySimCLR(LightlyModel):
    """lightly's parts for SimCLR; the projector without BatchNorm, as ours."""

    def __init__(self, args):
        super().__init__(SHIPPED, args, self.make_heads)
        self.loss = self.losses.NTXentLoss(temperature=0.1)

    @staticmethod
    def make_heads(modules, width):
        return [modules.SimCLRProjectionHead(width, 2048, 128, batch_norm=False)]

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.loss(*(self.encode(self.online, view) for view in inputs)))
