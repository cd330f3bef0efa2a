# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The losses beside their formulas written out, and beside the peers': time and extra memory.

    python benchmarks/loss.py densecl                   # or pixpro, slotcon, detco
    python benchmarks/loss.py slotcon --num-prototypes 2048
    python benchmarks/loss.py densecl --device cuda --amp float16

densecl   InfoNCE of N·49 queries against K keys; also mmpretrain's head and lightly's NTXentLoss
pixpro    one direction of pixel-to-propagation consistency, from projections and boxes
slotcon   one direction of the grouping loss, with the views' alignment, and of the slot loss
          without its predictor
detco     all twelve of N images, four stages by three pairings, against eight queues of K keys

All forward and backward. In float32 the values must agree to 1e-5, else the script fails. Extra
memory is what a call needs at most beyond its inputs; each is measured in a process of its own.
"""

import common
import models
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.functional import cross_entropy, normalize, one_hot
from torchvision.ops import roi_align

from mmdense.models.heads import SlotContrastHead
from mmdense.models.layers import SemanticGrouping
from mmdense.models.losses import group_distillation, info_nce
from mmdense.models.utils import align_maps
from mmdense.registry import MODELS

# ---------------------------------------------------------------------- the formulas, written out


def info_nce_written_out(query, key, queue):
    """Equation 1 of https://arxiv.org/abs/1911.05722."""
    positive, negative = (query * key).sum(1, keepdim=True), query @ queue
    logits = torch.cat([positive, negative], dim=1) / 0.2
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def pixel_consistency_written_out(transform, z, target, box_q, box_k):
    """Section 3.2 of https://arxiv.org/abs/2011.10043, formula by formula; p = 2,
    clamp = 0."""

    def centres(box):
        x = (torch.arange(width, device=box.device) + 0.5) / width
        y = (torch.arange(height, device=box.device) + 0.5) / height
        x = box[:, 0, None] + x * (box[:, 2] - box[:, 0])[:, None]
        y = box[:, 1, None] + y * (box[:, 3] - box[:, 1])[:, None]
        x = x[:, None, :].expand(-1, height, -1).flatten(1)
        y = y[:, :, None].expand(-1, -1, width).flatten(1)
        return torch.stack([x, y], dim=2)  # NxSx2

    def diagonal(box):
        w, h = (box[:, 2] - box[:, 0]) / width, (box[:, 3] - box[:, 1]) / height
        return (w**2 + h**2).sqrt()

    def unit(x):
        return x / x.norm(dim=1, keepdim=True)

    height, width = z.shape[2:]
    difference = centres(box_q)[:, :, None] - centres(box_k)[:, None]  # NxSxSx2
    larger = torch.maximum(diagonal(box_q), diagonal(box_k))
    distance = (difference**2).sum(3).sqrt() / larger[:, None, None]
    mask = (distance < 0.7).float()

    value = unit(transform(z).flatten(2))
    cells = unit(z.flatten(2))  # NxCxS
    similarity = torch.einsum('nci,ncj->nij', cells, cells).clamp(min=0) ** 2
    y = unit(torch.einsum('nij,ncj->nci', similarity, value))
    cosine = torch.einsum('nci,ncj->nij', y, unit(target.flatten(2)))
    return -2 * ((cosine * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)).mean()


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


# ------------------------------------------------- each loss in several versions, by their names


def densecl_losses(args):
    rows = args.batch_size * (args.size // 32) ** 2
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1).requires_grad_()
    key = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    head = models.build(models.shipped_config('DenseCL').model.head, 'mmpretrain', args)

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


def pixpro_losses(args):
    config = Config.fromfile(str(common.CONFIGS / '_base_' / 'models' / 'pixpro_r50.py')).model
    head = MODELS.build(config.head).to(args.device)
    n, grid = args.batch_size, args.size // 32
    z, target = torch.randn(2, n, 256, grid, grid, device=args.device)
    boxes = models.random_boxes(n, args.device)
    z.requires_grad_()
    losses = {
        'mmdense': lambda: head.loss(z, target, *boxes),
        'written out': lambda: pixel_consistency_written_out(
            head.value_transform, z, target, *boxes
        ),
    }
    return {'Pixel consistency': (losses, [z, *head.parameters()])}


def slotcon_losses(args):
    # slots and scores of a student's view and of the teacher's other, in which much is alike
    n, grid = args.batch_size, args.size // 32
    grouping = SemanticGrouping(args.num_prototypes).to(args.device)
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
    head = SlotContrastHead(predictor).to(args.device)
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


def detco_losses(args):
    def vectors(*shape, dim=-1):
        return normalize(torch.randn(4, *shape, device=args.device), dim=dim)

    n, k = args.batch_size, args.queue_len
    query = {kind: vectors(n, 128).requires_grad_() for kind in ('global', 'local')}
    key = {kind: vectors(n, 128) for kind in query}
    queue = {kind: vectors(128, k, dim=1) for kind in query}
    pairs = (('global', 'global'), ('local', 'local'), ('local', 'global'))  # query, key and queue

    def by(loss):
        return lambda: sum(
            weight * loss(query[q][i], key[kind][i], queue[kind][i])
            for i, weight in enumerate((0.1, 0.4, 0.7, 1.0))
            for q, kind in pairs
        )

    losses = {'mmdense': by(info_nce), 'written out': by(info_nce_written_out)}
    return {'Twelve InfoNCE': (losses, list(query.values()))}


# How they are built, what else is in the setting.
LOSSES = dict(
    densecl=(densecl_losses, 'K = {queue_len}'),
    pixpro=(pixpro_losses, ''),
    slotcon=(slotcon_losses, 'P = {num_prototypes}'),
    detco=(detco_losses, 'K = {queue_len}'),
)


def gradient_step(loss, leaves, args):
    """Computes a loss and the gradients of its inputs; returns its value."""

    def run():
        for leaf in leaves:
            leaf.grad = None
        with common.autocast(args):
            value = loss()
        value.backward()
        return value.detach()

    return run


def make(name, args):
    """One version of one loss: '{loss}/{version}'."""
    loss, version = name.split('/')
    losses, leaves = LOSSES[args.algorithm][0](args)[loss]
    return gradient_step(losses[version], leaves, args)


def check_equal(values):
    """Check that the versions of a loss agree, in float32 to 1e-5."""
    ours = values['mmdense']
    if any(abs(value - ours) > 1e-5 * max(1, abs(ours)) for value in values.values()):
        raise AssertionError(f'the losses differ: {values}')


def compare_losses(args):
    title = models.ALGORITHMS[args.algorithm]
    build, more = LOSSES[args.algorithm]
    words = [f'{args.batch_size} images', f'{(args.size // 32) ** 2} cells']
    setting = common.setting(args, *words, more.format(**vars(args)))
    rows = []
    for loss, (losses, leaves) in build(args).items():
        what = f'{title}, {loss}'
        print(f'{what}: {setting}')
        functions = {name: gradient_step(f, leaves, args) for name, f in losses.items()}
        values = {name: float(function()) for name, function in functions.items()}
        print(', '.join(f'{name} {value:.6f}' for name, value in values.items()))
        if not args.amp:
            check_equal(values)
        times = common.measure(functions, args)
        ours = times.pop('mmdense')
        rows += common.rows(what, setting, common.unit_of(ours), ours, times)
        small = dict(batch_size=2, queue_len=64)
        memory = {
            name: [common.peak_memory(make, f'{loss}/{name}', args, small)] for name in functions
        }
        ours = memory.pop('mmdense')
        rows += common.rows(f'{what}, extra memory', setting, 'MiB', ours, memory)
    return rows


def main():
    parser = common.parser(__doc__)
    parser.add_argument('algorithm', choices=LOSSES)
    common.add_model_options(parser, batch_size=32)
    args = parser.parse_args()
    common.prepare(args)
    common.finish(args, compare_losses(args))


if __name__ == '__main__':
    main()
