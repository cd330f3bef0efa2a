# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SCFS.

Losses: those of one stage, from the vectors of both networks; that of complete crops is DINO's.
Floor: DINO's, and at each of three stages the neck on global and on local crops, forward and
backward, and the teacher's on global crops and on the weighted maps, forward.
"""

import common
import torch
from floors import forward, forward_backward, last_map, leaf
from torch.nn.functional import normalize

from mmdense.models.losses import group_distillation, multi_crop_distillation

SETTING = '65536 prototypes'
TARGET = 1.03
GPU = False
PEERS = {}
LOCAL = 8


def stage_written_out(s, s_local, t, t_found, center):
    """Return a stage's loss, term by term; temperatures 0.1 and 0.04."""

    def term(student, teacher, center=0):
        target = torch.softmax((teacher - center) / 0.04, 1)
        return -(target * torch.log_softmax(student / 0.1, 1)).sum(1).mean()

    loss_global = (term(s[1], t[0], center) + term(s[0], t[1], center)) / 2
    loss_local = sum(map(term, s_local.chunk(LOCAL), t_found.chunk(LOCAL))) / LOCAL
    return (loss_global + loss_local) / 2


def losses(args):
    def vectors(*shape):
        return normalize(torch.randn(*shape, 256, device=args.device), dim=-1)

    n = args.batch_size
    s, t = vectors(2, n).requires_grad_(), vectors(2, n)
    s_local, t_found = vectors(LOCAL * n).requires_grad_(), vectors(LOCAL * n)
    center = t.mean((0, 1))

    def mmdense():
        loss_global = multi_crop_distillation(s, t, center, 0.1, 0.04)
        return (loss_global + group_distillation(s_local, t_found, None, 0.1, 0.04)) / 2

    losses = {
        'mmdense': mmdense,
        'written out': lambda: stage_written_out(s, s_local, t, t_found, center),
    }
    return {'stage': (losses, [s, s_local])}


def floor(model, views, args):
    large, small = torch.cat(views[:2]), torch.cat(views[2:])
    teacher = model.encoder_k.module
    with torch.no_grad(), common.autocast(args):
        maps = [[leaf(m) for m in model.backbone(x)] for x in (large, small)]
    parts = {
        'backbone': forward_backward(last_map(model.backbone), [large, small], model, args),
        'teacher_backbone': forward(teacher['backbone'], [large], args),
        'neck': forward_backward(lambda x: model.neck(x)[1], [[x[-1] for x in maps]], model, args),
        'teacher_neck': forward(teacher['neck'], [[maps[0][-1].detach()]], args),
    }
    for i, (of_large, of_small) in enumerate(zip(*maps)):
        neck, teachers = model.stage_necks[i], teacher['stage_necks'][i]
        of_teacher = of_large.detach()
        # as many weighted maps as local crops, of the size of the first global crop's
        found = of_teacher[: len(of_teacher) // 2].repeat(LOCAL, 1, 1, 1)
        parts[f'stage_{i + 1}'] = forward_backward(neck, [of_large, of_small], model, args)
        parts[f'teacher_stage_{i + 1}'] = forward(teachers, [of_teacher, found], args)
    return parts, None
