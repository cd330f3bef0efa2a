# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DINO, with a ResNet.

Losses: the cross-entropies of ten crops with the teacher's two, from scores.
Floor: backbone of two large and eight small crops, forward and backward, and of the large ones in
the teacher, forward; the neck with its prototypes on all crops, the teacher's on the large ones.
"""

import common
import torch
from floors import forward, forward_backward, last_map, leaf

from mmdense.models.losses import multi_crop_distillation

SETTING = '65536 prototypes'
TARGET = 1.03
GPU = False
PEERS = {}
CROPS, PROTOTYPES = 10, 65536


def loss_written_out(student, teacher, center):
    """Return the loss of https://arxiv.org/abs/2104.14294, section 3.1, term by term."""
    total, terms = 0, 0
    for g, t in enumerate(teacher):
        target = torch.softmax((t - center) / 0.04, 1)
        for v, s in enumerate(student):
            if v != g:
                total = total - (target * torch.log_softmax(s / 0.1, 1)).sum(1).mean()
                terms += 1
    return total / terms


def losses(args):
    shape = args.batch_size, PROTOTYPES
    student = torch.rand(CROPS, *shape, device=args.device) - 0.5
    teacher, center = student[:2] + 0.01, torch.zeros(PROTOTYPES, device=args.device)
    student.requires_grad_()
    losses = {
        'mmdense': lambda: multi_crop_distillation(student, teacher, center),
        'written out': lambda: loss_written_out(student, teacher, center),
    }
    return {'multi-crop distillation': (losses, [student])}


def floor(model, views, args):
    large, small = torch.cat(views[:2]), torch.cat(views[2:])
    teacher = model.encoder_k.module
    with torch.no_grad(), common.autocast(args):
        maps = [leaf(model.backbone(x)[-1]) for x in (large, small)]
    parts = {
        'backbone': forward_backward(last_map(model.backbone), [large, small], model, args),
        'teacher_backbone': forward(teacher['backbone'], [large], args),
        'neck': forward_backward(lambda x: model.neck(x)[1], [maps], model, args),
        'teacher_neck': forward(teacher['neck'], [[maps[0].detach()]], args),
    }
    return parts, None
