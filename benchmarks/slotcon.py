# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""SlotCon's losses beside their formulas written out, and its step beside the floor.

    python benchmarks/slotcon.py [loss] [step] [--num-prototypes 2048] [--device cuda --amp]

loss   One direction of the grouping loss, with the views' alignment, and of the slot loss without
       its predictor, from scores and slots of two views, forward and backward: time and extra
       memory.
step   One training step: the losses of a batch, with the updates of twin and center, and their
       gradients. The floor is the work that no implementation can leave out, each part timed alone
       in the same round: backbone and projector of both views, forward and backward, and forward
       in the twin, the predictor on the positive slots, and the losses' matrix products.

Everything is measured in turn, round after round, so that a drift of the machine meets all alike.
Printed are the median and the range over rounds, and the median of each round's ratios.
"""

import common
import torch
from common import product
from torch import nn
from torch.nn.functional import one_hot
from torchvision.ops import roi_align

from mmdense.models.heads import SlotContrastHead
from mmdense.models.heads.slot_contrast_head import kept_slots
from mmdense.models.losses import group_distillation
from mmdense.models.necks import SemanticGrouping
from mmdense.models.utils import align_maps

# ----------------------------------------------------------------------------------------- losses


def overlap_written_out(scores, box, other):
    """What the views share, image by image."""
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


def inputs(args):
    """Slots and scores of a student's view and of the teacher's other, in which
    much is alike."""
    n, grid = args.batch_size_loss, args.size // 32
    grouping = SemanticGrouping(args.num_prototypes).to(args.device)
    z = torch.randn(n, 256, grid, grid, device=args.device)
    with torch.no_grad():
        slots_q, scores_q = grouping(z)
        slots_k, scores_k = grouping(z + 0.1 * torch.randn_like(z))
    return slots_q.requires_grad_(), slots_k, scores_q.requires_grad_(), scores_k


def grouping_functions(args):
    _, _, student, teacher = inputs(args)
    box_q, box_k = common.random_boxes(args.batch_size_loss, args.device)
    center = teacher.mean((0, 2, 3))

    def ours():
        return group_distillation(
            align_maps(student, box_q, box_k), align_maps(teacher, box_k, box_q), center
        )

    losses = {
        'written out': lambda: grouping_written_out(student, teacher, box_q, box_k, center),
        'mmdense': ours,
    }
    return {name: common.gradient_step(loss, [student], args) for name, loss in losses.items()}


def slot_functions(args):
    batch = inputs(args)
    predictor = dict(type='mmdense.ProjectionMLP', in_channels=256, dense=False)
    head = SlotContrastHead(predictor).to(args.device)
    head.predictor = nn.Identity()
    losses = {
        'written out': lambda: slots_written_out(*batch),
        'mmdense': lambda: head.loss(*batch),
    }
    return {name: common.gradient_step(loss, batch[:1], args) for name, loss in losses.items()}


def benchmark_loss(args):
    cells = (args.size // 32) ** 2
    size = f'{args.batch_size_loss} images × {cells} cells, P = {args.num_prototypes}'
    for name, make in (('Grouping', grouping_functions), ('Slot', slot_functions)):
        values = common.compare_losses(f'{name} loss: {size}', make, args, batch_size_loss=2)
        if not args.amp:
            common.check_equal(values)


# ------------------------------------------------------------------------------------------- step


@torch.no_grad()
def shared_slots(model, views, args):
    """Slots that both views have, and the keys they are told from: two pairs
    (M, R), one a direction."""
    with common.autocast(args):
        kept_q = [kept_slots(model._group(model._online(), view)[1]) for view in views]
        kept_k = [kept_slots(model._group(model.encoder_k.module, view)[1]) for view in views]
    return [(int((q & k).sum()), int(k.sum())) for q, k in zip(kept_q, reversed(kept_k))]


def floor_parts(model, views, shared, args):
    parts = common.encoder_parts(model, views, args)
    n, _, s = model.backbone(views[0])[-1].flatten(2).shape
    p, c = args.num_prototypes, model.neck.out_channels
    rows = [torch.randn(m, c, device=args.device, requires_grad=True) for m, _ in shared]
    parts['predictor'] = common.forward_backward(model.head.predictor, rows, args)
    neither, both = (False, False), (True, True)
    products = []
    for (m, r), needs_grad in zip(shared + shared, (both, both, neither, neither)):
        products.append(product((p, c), (c, n * s), needs_grad))  # scores
        products.append(product((n, p, s), (n, s, c), needs_grad))  # slots
        if needs_grad is both:
            products.append(product((m, c), (c, r), (True, False)))  # logits
    parts['products'] = common.matrix_products(products, args)
    return parts


def benchmark_step(args):
    config = common.model_config('slotcon_r50', args.depth)
    model = common.build(dict(config, num_prototypes=args.num_prototypes, total_steps=1000), args)
    views, samples = common.random_batch(args)
    step = common.training_step(model, (views, samples), args)
    step()  # the first makes the twin a copy
    shared = shared_slots(model, views, args)
    print(
        f'Step: R{args.depth}, batch {args.batch_size}, {args.size} px, P = {args.num_prototypes}, '
        f'{" and ".join(str(m) for m, _ in shared)} positive slots, {common.setting(args)}'
    )
    common.compare_step('SlotCon', step, floor_parts(model, views, shared, args), args)


def main():
    parser = common.parser(__doc__)
    common.add_step_options(parser)
    parser.add_argument('--num-prototypes', type=int, default=256)
    common.run(parser.parse_args(), benchmark_loss, benchmark_step)


if __name__ == '__main__':
    main()
