# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DenseCL.

Losses: InfoNCE of N·49 queries against K keys; also mmpretrain's head and lightly's NTXentLoss.
Floor: backbone of view 1, forward and backward, and of view 2 in the momentum encoder, forward;
both necks; the losses' two matrix products and one softmax.
"""

import copy

import common
import models
import torch
from floors import forward, forward_backward, last_map, leaf, maps_of
from formulas import info_nce_written_out
from torch import nn
from torch.nn.functional import normalize

from mmdense.models.losses import info_nce

SETTING = 'K = {queue_len}'
TARGET = 1.02
SHIPPED = 'densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py'
PEERS = {
    'mmpretrain DenseCL': SHIPPED,
    'mmpretrain MoCo v2': 'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
    'lightly DenseCL': lambda args: LightlyDenseCL(args),
}
GAINS = [
    ('its dense loss, K = 65536', 'gpu', 'loss-densecl', ', InfoNCE', 'mmpretrain'),
    ('memory of its dense loss', 'gpu', 'loss-densecl', ', InfoNCE, extra memory', 'mmpretrain'),
    ('a step, R50', 'gpu', 'step-densecl', '', 'mmpretrain DenseCL'),
    ('a run, all included', 'gpu', 'end_to_end', ', a run', 'mmpretrain'),
    ('a run in bfloat16 on a CPU', 'end_to_end-bfloat16', ', a run', 'mmpretrain'),
]


def losses(args):
    rows = args.batch_size * (args.size // 32) ** 2
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1).requires_grad_()
    key = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    head = models.build(models.shipped_config(SHIPPED).model.head, 'mmpretrain', args)

    def mmpretrain():
        # as in its DenseCL.loss
        positive = (query * key).sum(1).unsqueeze(-1)
        negative = torch.einsum('nc,ck->nk', [query, queue.clone().detach()])
        return head.loss(positive, negative)

    losses = {
        'mmdense': lambda: info_nce(query, key, queue, 0.2),
        'written out': lambda: info_nce_written_out(query, key, queue),
        'mmpretrain': mmpretrain,
    }
    if common.peer('lightly.loss'):
        nt_xent = common.peer('lightly.loss').NTXentLoss(0.2, (args.queue_len, 128))
        nt_xent.memory_bank.bank = queue.t().clone()
        # Normalises once more, and puts all the keys into its bank afterwards.
        losses['lightly'] = lambda: nt_xent(query, key)
    return {'InfoNCE': (losses, [query])}


def floor(model, views, args):
    backbone, neck = model.encoder_k.module
    (feature,) = maps_of(model.backbone, views[:1], args)
    cells = feature.flatten(2).size(2)
    rows = args.batch_size * (cells + 1)
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    matrix = torch.empty(rows, args.queue_len, device=args.device)
    parts = {
        'backbone': forward_backward(last_map(model.backbone), views[:1], model, args),
        'twin_backbone': forward(backbone, views[1:], args),
        'neck': forward_backward(lambda x: model.neck((x,)), [leaf(feature)], model, args),
        'twin_neck': forward(lambda x: neck((x,)), [feature], args),
        'products': lambda: torch.mm(query, queue, out=matrix),
        'softmax': lambda: torch.softmax(matrix, dim=1, out=matrix),
        'gradient': lambda: torch.mm(matrix, queue.t()),
    }
    return parts, None


class LightlyDenseCL(nn.Module):
    """lightly's parts for DenseCL, put together as the paper says; same backbone.

    What it has no part for is left out: the shuffled BatchNorm, which does nothing in one process.
    Its local queue takes every key, ours (as the published code's) the mean of an image's.
    """

    def __init__(self, args):
        super().__init__()
        heads = common.peer('lightly.models.modules')
        width = 2048 if args.depth >= 50 else 512
        self.utils = common.peer('lightly.models.utils')
        self.online = nn.ModuleList(
            [
                models.theirs(SHIPPED, args).backbone,
                heads.DenseCLProjectionHead(width, 2048, 128),
                heads.DenseCLProjectionHead(width, 2048, 128),
            ]
        )
        self.twin = copy.deepcopy(self.online)
        self.utils.deactivate_requires_grad(self.twin)
        loss = common.peer('lightly.loss').NTXentLoss
        self.losses = nn.ModuleList(
            [loss(temperature=0.2, memory_bank_size=(args.queue_len, 128)) for _ in range(2)]
        )
        self.to(args.device).train()

    def forward(self, inputs, data_samples=None, mode='loss'):
        def encode(encoder, view):
            backbone, whole, dense = encoder
            maps = backbone(view)[-1].flatten(2)  # NxCxS
            return maps.transpose(1, 2), whole(maps.mean(2)), dense(maps.transpose(1, 2))

        maps_q, q, cells_q = encode(self.online, inputs[0])
        with torch.no_grad():
            self.utils.update_momentum(self.online, self.twin, m=0.999)
            maps_k, k, cells_k = encode(self.twin, inputs[1])
            cells_k = self.utils.select_most_similar(maps_q, maps_k, cells_k)
        single, dense = self.losses
        return dict(
            loss_single=0.5 * single(q, k),
            loss_dense=0.5 * dense(cells_q.flatten(0, 1), cells_k.flatten(0, 1)),
        )
