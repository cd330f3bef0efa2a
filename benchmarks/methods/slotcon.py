# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SlotCon.

Losses: one direction of the grouping loss, with the views' alignment, and of the slot loss without
its predictor.
Floor: backbone and projector of both views, forward and backward, and in the momentum encoder,
forward; the predictor on the positive slots; the losses' matrix products.
"""

import common
import models
import torch
from floors import both_encoders, forward_backward, maps_of, matrix_products, product
from torch import nn
from torch.nn.functional import one_hot
from torchvision.ops import roi_align

from mmdense.models.heads import SlotContrastHead
from mmdense.models.heads.slot_contrast_head import kept_slots
from mmdense.models.layers import SemanticGrouping
from mmdense.models.losses import group_distillation
from mmdense.models.utils import align_maps

SETTING = 'P = {num_prototypes}'
TARGET = 1.03
PEERS = {}
READS = 1  # the numbers of slots that were kept
MORE = {'loss-slotcon-2048': 'loss.py slotcon --num-prototypes 2048 --rounds 3 CLOCK'}
GAINS = [
    (
        'memory of its slot loss, P = 2048',
        'gpu',
        'loss-slotcon-2048',
        ', Slots, extra memory',
        'written out',
    )
]


def overlap_written_out(scores, box, other):
    """Return the overlap of the views, image by image."""
    height, width = scores.shape[2:]
    aligned = []
    for maps, (x0, y0, x1, y1), (u0, v0, u1, v1) in zip(scores, box.tolist(), other.tolist()):
        left, right = max(min(x0, x1), min(u0, u1)), min(max(x0, x1), max(u0, u1))
        top, bottom = max(min(y0, y1), min(v0, v1)), min(max(y0, y1), max(v0, v1))
        # in the view's own frame, where it is mirrored from right to left
        left, right = sorted(((left - x0) / (x1 - x0), (right - x0) / (x1 - x0)))
        top, bottom = sorted(((top - y0) / (y1 - y0), (bottom - y0) / (y1 - y0)))
        region = maps.new_tensor([[0, left * width, top * height, right * width, bottom * height]])
        region[:, 1::2].clamp_(0, width)
        region[:, 2::2].clamp_(0, height)
        cut = roi_align(maps[None], region, (height, width), aligned=True)
        flipped = [dim for dim, yes in ((3, x0 > x1), (2, y0 > y1)) if yes]
        aligned.append(cut.flip(flipped) if flipped else cut)
    return torch.cat(aligned)


def grouping_written_out(student, teacher, box_q, box_k, center):
    """Equation 4 of https://arxiv.org/abs/2205.15288."""
    student = overlap_written_out(student, box_q, box_k)
    teacher = overlap_written_out(teacher, box_k, box_q)
    p = ((teacher - center[:, None, None]) / 0.07).softmax(1)
    q = (student / 0.1).softmax(1)
    return -(p * q.log()).sum(1).mean()


def slots_written_out(slots_q, slots_k, scores_q, scores_k):
    """Equation 6, times 2τ: positives against all slots, those not kept masked."""

    def kept(scores):
        best = one_hot(scores.argmax(1), scores.size(1))  # NxHxWxP
        return best.sum((1, 2)) > 0  # NxP

    positive = (kept(scores_q) & kept(scores_k)).flatten()
    query, key = (s / s.norm(dim=2, keepdim=True) for s in (slots_q, slots_k))
    logits = query.flatten(0, 1)[positive] @ key.flatten(0, 1).t() / 0.2  # MxNP
    logits = logits.masked_fill(~kept(scores_k).flatten(), -torch.inf)
    own = one_hot(positive.nonzero().squeeze(1), logits.size(1)).bool()
    return -2 * 0.2 * logits.log_softmax(1)[own].mean()


def losses(args):
    # slots and scores of a student's view and of the teacher's other, in which much is alike
    n, grid = args.batch_size, args.size // 32
    grouping = models.on_device(lambda: SemanticGrouping(args.num_prototypes), args)
    z = torch.randn(n, 256, grid, grid, device=args.device)
    with torch.no_grad():
        slots_q, scores_q = grouping(z)
        slots_k, scores_k = grouping(z + 0.1 * torch.randn_like(z))
    slots_q.requires_grad_(), scores_q.requires_grad_()
    box_q, box_k = models.random_boxes(n, args.device)
    center = scores_k.mean((0, 2, 3))

    def group():
        aligned = align_maps(scores_q, box_q, box_k), align_maps(scores_k, box_k, box_q)
        return group_distillation(*aligned, center)

    predictor = dict(type='mmdense.ProjectionMLP', in_channels=256, dense=False)
    head = models.on_device(lambda: SlotContrastHead(predictor), args)
    head.predictor = nn.Identity()
    batch = slots_q, slots_k, scores_q, scores_k
    grouping_losses = {
        'mmdense': group,
        'written out': lambda: grouping_written_out(scores_q, scores_k, box_q, box_k, center),
    }
    slot_losses = {
        'mmdense': lambda: head.loss(*batch),
        'written out': lambda: slots_written_out(*batch),
    }
    return {'Grouping': (grouping_losses, [scores_q]), 'Slots': (slot_losses, [slots_q])}


def floor(model, views, args):
    parts = both_encoders(model, views, args)
    with torch.no_grad(), common.autocast(args):
        kept_q = [kept_slots(model._group(model.online_network(), view)[1]) for view in views]
        kept_k = [kept_slots(model._group(model.encoder_k.module, view)[1]) for view in views]
    # slots that both views have, and the keys they are told from: (M, R), a direction each
    shared = [(int((q & k).sum()), int(k.sum())) for q, k in zip(kept_q, reversed(kept_k))]
    n, _, s = maps_of(model.backbone, views[:1], args)[0].flatten(2).shape
    p, c = args.num_prototypes, model.neck.out_channels
    rows = [torch.randn(m, c, device=args.device, requires_grad=True) for m, _ in shared]
    parts['predictor'] = forward_backward(model.head.predictor, rows, model, args)
    neither, both = (False, False), (True, True)
    products = []
    for (m, r), needs_grad in zip(shared + shared, (both, both, neither, neither)):
        products.append(product((p, c), (c, n * s), needs_grad))  # scores
        products.append(product((n, p, s), (n, s, c), needs_grad))  # slots
        if needs_grad is both:
            products.append(product((m, c), (c, r), (True, False)))  # logits
    parts['products'] = matrix_products(products, args)
    return parts, f'{" and ".join(str(m) for m, _ in shared)} positive slots'
