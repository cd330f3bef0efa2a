# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A whole training step over its own floor, and beside the peers'.

    python benchmarks/step.py densecl                   # or pixpro, slotcon, detco
    python benchmarks/step.py densecl --device cuda --amp float16 --batch-size 64
    python benchmarks/step.py lars --rounds 21          # the optimiser's step alone

A step is the losses of a batch, with the updates of twin, queues and centers, and their gradients.
The floor is the work that no implementation can leave out, each part timed alone in the same round:

densecl   backbone of view 1, forward and backward, and of view 2 in the twin, forward; both necks;
          the losses' two matrix products and one softmax
pixpro    backbone and projector of both views, forward and backward, and in the twin, forward; the
          transform of the propagated values; the losses' matrix products
slotcon   the same encoders; the predictor on the positive slots; the losses' matrix products
detco     backbone and heads on the query's view and patches, forward and backward; on the key's in
          the twin, forward; the losses' matrix products

The parts run in our model's memory format; --cfg-options changes our model.
"""

import common
import models
import torch
from torch import nn
from torch.nn.functional import normalize

from mmdense.models.heads.slot_contrast_head import kept_slots
from mmdense.models.utils import split_patches

# ---------------------------------------------------------------------------- parts of the floors


def forward_backward(encode, inputs, model, args):
    """Forward and backward of ``encode(x)``, a tensor or several, for each of several x.

    Args:
        inputs (list): Tensors, or lists of them.
        model (nn.Module): Whose gradients are zeroed first.
    """
    gradients = {}

    def run():
        model.zero_grad()
        for i, x in enumerate(inputs):
            for leaf in x if isinstance(x, list) else [x]:
                leaf.grad = None
            with common.autocast(args):
                out = encode(x)
            out = [out] if isinstance(out, torch.Tensor) else [o for o in out if o.requires_grad]
            if i not in gradients:
                # Random: BatchNorm's gradient of a constant is noise around 0, and denormal numbers
                # are slow.
                gradients[i] = [torch.randn_like(o) for o in out]
            torch.autograd.backward(out, gradients[i])

    return run


def forward(encode, inputs, args):
    """Forward on each of several inputs, without gradients."""

    @torch.no_grad()
    def run():
        for x in inputs:
            with common.autocast(args):
                encode(x)

    return run


def last_map(backbone):
    return lambda x: backbone(x)[-1]


def maps_of(backbone, views, args):
    """Last maps of several views, without gradients."""
    with torch.no_grad(), common.autocast(args):
        return [backbone(view)[-1] for view in views]


def leaf(x):
    return x.detach().clone().requires_grad_()


def product(a, b, needs_grad=(True, True)):
    """A matrix product, and those of its gradients that are needed.

    Args:
        a, b (tuple): Shapes, M×K and K×N, or both with a batch in front.
    """
    return a, b, needs_grad


def matrix_products(shapes, args):
    """Computes a list of :func:`product`."""
    pairs = []
    for a, b, needs_grad in shapes:
        pair = [torch.randn(s, device=args.device) for s in (a, b)]
        pairs.append([x.requires_grad_(needed) for x, needed in zip(pair, needs_grad)])

    def run():
        for a, b in pairs:
            with common.autocast(args):
                out = a @ b
            if out.requires_grad:
                leaves = [x for x in (a, b) if x.requires_grad]
                torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def both_encoders(model, views, args):
    """Run backbone and projector of both views of PixPro and SlotCon, with gradients, and those of
    the momentum encoder without."""
    twin = model.encoder_k.module
    maps = maps_of(model.backbone, views, args)
    return {
        'backbone': forward_backward(last_map(model.backbone), views, model, args),
        'twin_backbone': forward(twin['backbone'], views, args),
        'projector': forward_backward(model.neck, [leaf(m) for m in maps], model, args),
        'twin_projector': forward(twin['neck'], maps, args),
    }


# --------------------------------------------------------------------------------------- the floors


def densecl_floor(model, views, args):
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


def pixpro_floor(model, views, args):
    parts = both_encoders(model, views, args)
    with torch.no_grad():
        z = [leaf(model.neck(m)) for m in maps_of(model.backbone, views, args)]
    transform = model.head.value_transform
    if not isinstance(transform, nn.Identity):
        parts['transform'] = forward_backward(transform, z, model, args)
    n, c, s = z[0].flatten(2).shape
    direction = [
        product((n, s, c), (n, c, s)),  # similarity of the cells of a view
        product((n, c, s), (n, s, s)),  # propagation
        product((n, s, c), (n, c, s), (True, False)),  # cosine to the target
    ]
    parts['products'] = matrix_products(2 * direction, args)
    return parts, None


def slotcon_floor(model, views, args):
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


def detco_floor(model, inputs, args):
    views, patches = inputs[0], split_patches(inputs[2], model.neck.grid)
    backbone, neck = model.encoder_k.module
    with torch.no_grad(), common.autocast(args):
        maps, patch_maps = model.backbone(views), model.backbone(patches)
    leaves = [leaf(m) for m in (*maps, *patch_maps)]

    def heads(neck):
        return lambda x: neck(x[: len(maps)]) + neck.forward_local(x[len(maps) :])

    n, c, k = len(views), model.queues_global[0].feat_dim, args.queue_len
    parts = {
        'backbone': forward_backward(model.backbone, [views, patches], model, args),
        'twin_backbone': forward(backbone, [views, patches], args),
        'heads': forward_backward(heads(model.neck), [leaves], model, args),
        'twin_heads': forward(heads(neck), [[*maps, *patch_maps]], args),
        'products': matrix_products([product((n, c), (c, k), (True, False))] * 12, args),
    }
    return parts, f'patches of {args.patch_size} px'


# -------------------------------------------------------------------------------------- whole steps

# Floor, what else is in the setting, peers.
STEPS = dict(
    densecl=(
        densecl_floor,
        'K = {queue_len}',
        ['mmpretrain DenseCL', 'mmpretrain MoCo v2', 'lightly DenseCL'],
    ),
    pixpro=(pixpro_floor, '', ['mmpretrain BYOL']),
    slotcon=(slotcon_floor, 'P = {num_prototypes}', []),
    detco=(detco_floor, 'K = {queue_len}', []),
)


def compare_steps(args):
    """Rows of one algorithm: over the floor, over the bare backbone, beside the peers."""
    title = models.ALGORITHMS[args.algorithm]
    floor, more, peers = STEPS[args.algorithm]
    mine = f'mmdense {args.algorithm}'
    peers = [p for p in peers if not p.startswith('lightly') or common.peer('lightly.loss')]
    common.keep_freed_memory()
    model, batch = models.algorithm(mine, args), models.random_batch(mine, args)
    steps = {mine: models.training_step(model, batch, args)}
    steps[mine]()  # the first makes the twin a copy
    views = batch[0]
    if model.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    parts, also = floor(model, views, args)
    steps.update((name, models.step(name, args)) for name in peers)

    words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
    setting = common.setting(args, *words, more.format(**vars(args)), also)
    print(f'Step of {title}: {setting}')
    times = common.measure({**parts, **steps}, args)
    for part in parts:
        common.show(f'  {part}', times[part], common.unit_of(times[part]))
    against = {
        'floor': common.total(times, parts),
        'bare backbone': common.total(times, ['backbone', 'twin_backbone']),
        **{name: times[name] for name in peers},
    }
    unit = common.unit_of(times[mine])
    rows = common.rows(title, setting, unit, times[mine], against)
    if args.device == 'cuda':
        small = dict(batch_size=2)
        peak = {name: [common.peak_memory(models.step, name, args, small, True)] for name in steps}
        ours = peak.pop(mine)
        rows += common.rows(f'{title}, peak memory', setting, 'MiB', ours, peak)
    return rows


# ------------------------------------------------------------------------------------ the optimiser


def compare_lars(args):
    """A step of LARS on ResNet's parameters: mmpretrain's, ours, and SGD."""
    from mmpretrain.engine.optimizers import LARS as Theirs

    from mmdense.engine import LARS

    options = dict(lr=0.1, momentum=0.9, weight_decay=1e-5)

    def parameters():
        """Copy tensors, with gradients."""
        backbone = models.shrink(models.shipped_config('DenseCL').model, args).backbone
        params = list(models.build(backbone, 'mmpretrain', args).parameters())
        for p in params:
            p.grad = torch.randn_like(p)
        return params

    def groups(params):
        return [
            dict(params=[p for p in params if p.ndim > 1]),
            dict(params=[p for p in params if p.ndim <= 1], weight_decay=0.0, lars_exclude=True),
        ]

    steps = {
        'mmdense': LARS(parameters(), **options).step,
        'mmpretrain LARS': Theirs(groups(parameters()), **options).step,
        'torch SGD': torch.optim.SGD(parameters(), foreach=True, **options).step,
    }
    rows = []
    # on a GPU also the time until the call returns, with the GPU still at work
    for what, which in (('LARS', 1), ('LARS, host', 0))[: 1 + (args.device == 'cuda')]:
        times = common.measure(steps, args, which)
        ours = times.pop('mmdense')
        rows += common.rows(what, common.setting(args, f'R{args.depth}'), 'ms', ours, times)
    return rows


def main():
    parser = common.parser(__doc__)
    parser.add_argument('algorithm', choices=[*STEPS, 'lars'])
    common.add_model_options(parser)
    args = parser.parse_args()
    common.prepare(args)
    common.finish(args, compare_lars(args) if args.algorithm == 'lars' else compare_steps(args))


if __name__ == '__main__':
    main()
