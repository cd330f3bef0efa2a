# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""MoCo v2.

Losses: InfoNCE of N queries against K keys; also mmpretrain's head.
Floor: backbone and neck of view 1, forward and backward, and of view 2 in the momentum encoder,
forward; the loss's two matrix products and one softmax.
"""

import models
import torch
from floors import forward, forward_backward, last_map, leaf, maps_of
from formulas import info_nce_written_out
from lightly_parts import LightlyModel
from torch.nn.functional import normalize

from mmdense.models.losses import info_nce

SETTING = 'K = {queue_len}'
TARGET = 1.03
GPU = False
SHIPPED = 'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py'
PEERS = {'mmpretrain MoCoV2': SHIPPED, 'lightly MoCoV2': lambda args: LightlyMoCo(args)}


def losses(args):
    query, key = normalize(torch.randn(2, args.batch_size, 128, device=args.device), dim=2)
    query.requires_grad_()
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    head = models.build(models.shipped_config(SHIPPED).model.head, 'mmpretrain', args)

    def mmpretrain():
        # as in its MoCo.loss
        positive = torch.einsum('nc,nc->n', [query, key]).unsqueeze(-1)
        negative = torch.einsum('nc,ck->nk', [query, queue.clone().detach()])
        return head.loss(positive, negative)

    losses = {
        'mmdense': lambda: info_nce(query, key, queue, 0.2),
        'written out': lambda: info_nce_written_out(query, key, queue),
        'mmpretrain': mmpretrain,
    }
    return {'InfoNCE': (losses, [query])}


def floor(model, views, args):
    backbone, neck = model.encoder_k.module
    (feature,) = maps_of(model.backbone, views[:1], args)
    query = normalize(torch.randn(args.batch_size, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    matrix = torch.empty(args.batch_size, args.queue_len, device=args.device)
    parts = {
        'backbone': forward_backward(last_map(model.backbone), views[:1], model, args),
        'momentum_backbone': forward(backbone, views[1:], args),
        'neck': forward_backward(lambda x: model.neck((x,)), [leaf(feature)], model, args),
        'momentum_neck': forward(lambda x: neck((x,)), [feature], args),
        'products': lambda: torch.mm(query, queue, out=matrix),
        'softmax': lambda: torch.softmax(matrix, dim=1, out=matrix),
        'gradient': lambda: torch.mm(matrix, queue.t()),
    }
    return parts, None


class LightlyMoCo(LightlyModel):
    """lightly's parts for MoCo v2. The shuffled BatchNorm, which does nothing in one process, is
    left out."""

    def __init__(self, args):
        super().__init__(SHIPPED, args, self.make_heads, twin=True)
        self.loss = self.losses.NTXentLoss(0.2, memory_bank_size=(args.queue_len, 128))
        self.to(args.device)

    @staticmethod
    def make_heads(modules, width):
        return [modules.MoCoProjectionHead(width, 2048, 128)]

    def forward(self, inputs, data_samples=None, mode='loss'):
        q = self.encode(self.online, inputs[0])
        with torch.no_grad():
            self.utils.update_momentum(self.online, self.twin, m=0.999)
            k = self.encode(self.twin, inputs[1])
        return dict(loss=self.loss(q, k))
