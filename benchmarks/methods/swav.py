# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SwAV.

Losses: codes and the cross-entropies of eight views, from projections; also mmpretrain's head.
Floor: backbone of two large and six small views, forward and backward; the neck of all eight; the
similarities with the prototypes and their gradients.
"""

import common
import models
import torch
from floors import forward_backward, last_map, leaf, matrix_products, product
from lightly_parts import LightlyModel
from torch.nn.functional import normalize

from mmdense.models.losses import sinkhorn, swapped_prediction

SETTING = '3000 prototypes'
TARGET = 1.03
GPU = False
SHIPPED = 'swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px.py'
PEERS = {'mmpretrain SwAV': SHIPPED, 'lightly SwAV': lambda args: LightlySwAV(args)}
VIEWS = 8


def codes_written_out(scores):
    """Return the codes of https://arxiv.org/abs/2006.09882, appendix A."""
    q = torch.exp(scores / 0.05)
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.size(1)
        q = q / q.sum(1, keepdim=True) / q.size(0)
    return q * q.size(0)


def loss_written_out(z, weight):
    """Return algorithm 1's loss of the same paper, with multi-crop."""
    scores, total = (z @ weight.t()).chunk(VIEWS), 0
    for a in (0, 1):
        q = codes_written_out(scores[a].detach())
        for v in set(range(VIEWS)) - {a}:
            total = total - (q * torch.log_softmax(scores[v] / 0.1, 1)).sum(1).mean()
    return total / (2 * (VIEWS - 1))


def losses(args):
    head = models.build(models.shipped_config(SHIPPED).model.head, 'mmpretrain', args)
    weight = head.loss_module.prototypes.weight
    with torch.no_grad():
        weight.copy_(normalize(weight, dim=1))
    z = normalize(torch.randn(VIEWS * args.batch_size, 128, device=args.device), dim=1)
    z.requires_grad_()

    def mmdense():
        scores = (z @ weight.t()).unflatten(0, (VIEWS, -1))
        return swapped_prediction(scores, sinkhorn(scores[:2].detach()), (0, 1))

    losses = {
        'mmdense': mmdense,
        'written out': lambda: loss_written_out(z, weight),
        'mmpretrain': lambda: head.loss(z),
    }
    return {'swapped prediction': (losses, [z, weight])}


def floor(model, views, args):
    large, small = torch.cat(views[:2]), torch.cat(views[2:])
    with torch.no_grad(), common.autocast(args):
        maps = [leaf(model.backbone(x)[-1]) for x in (large, small)]
    rows, dim = VIEWS * args.batch_size, model.prototypes.in_features
    parts = {
        'backbone': forward_backward(last_map(model.backbone), [large, small], model, args),
        'neck': forward_backward(lambda x: model.neck([(m,) for m in x]), [maps], model, args),
        'products': matrix_products(
            [product((rows, dim), (dim, model.prototypes.out_features))], args
        ),
    }
    return parts, None


class LightlySwAV(LightlyModel):
    """lightly's parts for SwAV; the queue is empty, as ours here. Each view goes through the
    network alone, as in lightly's example."""

    def __init__(self, args):
        super().__init__(SHIPPED, args, self.make_heads)
        self.loss = self.losses.SwaVLoss()

    @staticmethod
    def make_heads(modules, width):
        return [modules.SwaVProjectionHead(width, 2048, 128), modules.SwaVPrototypes(128, 3000)]

    def forward(self, inputs, data_samples=None, mode='loss'):
        (prototypes,) = self.heads
        prototypes.normalize()
        z = [normalize(self.encode(self.online, view), dim=1) for view in inputs]
        scores = [prototypes(one) for one in z]
        return dict(loss=self.loss(scores[:2], scores[2:]))
