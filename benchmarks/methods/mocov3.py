# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""MoCo v3, with a ResNet.

Losses: one direction of the contrast within the batch, from predictions.
Floor: backbone and projector of both views, forward and backward, and in the momentum encoder,
forward; the predictor on both.
"""

import torch
from floors import predicting_encoders
from torch.nn.functional import cross_entropy, normalize

from mmdense.models.losses import batch_info_nce

SETTING = ''
TARGET = 1.03
GPU = False
LOSS_OPTIONS = '--batch-size 512'  # the batches that it is for
SHIPPED = 'mocov3/mocov3_resnet50_8xb512-amp-coslr-100e_in1k.py'
PEERS = {'mmpretrain MoCoV3': SHIPPED}


def contrast_written_out(query, key):
    """Return algorithm 1's ctr() of https://arxiv.org/abs/2104.02057 with τ = 1, over 2τ."""
    logits = normalize(query, dim=1) @ normalize(key, dim=1).t()
    return cross_entropy(logits, torch.arange(len(query), device=query.device))


def losses(args):
    query, key = torch.randn(2, args.batch_size, 256, device=args.device)
    query.requires_grad_()
    losses = {
        'mmdense': lambda: batch_info_nce(query, key),
        'written out': lambda: contrast_written_out(query, key),
    }
    return {'InfoNCE in the batch': (losses, [query])}


def floor(model, views, args):
    return predicting_encoders(model, views, args), None
