# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Dense distillation, with a ViT-B/14 as the teacher.

Losses: cosine and smooth L1, on the teacher's grid.
Floor: the student's backbone and projector, forward and backward; the teacher, forward.
"""

import common
import torch
from floors import forward, forward_backward, last_map, leaf, maps_of

from mmdense.models.heads import MapDistillationHead

SETTING = 'ViT-B/14 as the teacher'
TARGET = 1.03
GPU = False
PEERS = {}
CHANNELS, GRID = 768, 16


def loss_written_out(student, teacher):
    """Return the losses of https://arxiv.org/abs/2312.06709, equation 3, term by term."""
    s = torch.nn.functional.interpolate(student, (GRID, GRID), mode='bilinear')
    cosine = (s * teacher).sum(1) / (s.norm(dim=1) * teacher.norm(dim=1))
    d = (s - teacher).abs()
    smooth = torch.where(d < 2, 0.25 * d * d, d - 1)
    return 0.9 * (1 - cosine).mean() + 0.1 * smooth.mean()


def losses(args):
    size = args.size // 32
    student = torch.randn(args.batch_size, CHANNELS, size, size, device=args.device)
    teacher = torch.randn(args.batch_size, CHANNELS, GRID, GRID, device=args.device)
    student.requires_grad_()
    head = MapDistillationHead()
    losses = {
        'mmdense': lambda: sum(head.loss(student, teacher).values()),
        'written out': lambda: loss_written_out(student, teacher),
    }
    return {'Cosine and smooth L1': (losses, [student])}


def floor(model, views, args):
    (neck,), (teacher,) = model.necks[0], model.teachers
    with torch.no_grad(), common.autocast(args):
        images = [teacher.prepare(view) for view in views]
    maps = [leaf(m) for m in maps_of(model.backbone, views, args)]
    parts = {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'projector': forward_backward(neck, maps, model, args),
        'teacher': forward(teacher.backbone, images, args),
    }
    return parts, None
