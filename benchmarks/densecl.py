# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DenseCL's loss and whole step beside mmpretrain's, and beside the floor.

    python benchmarks/densecl.py [loss] [step] [--device cuda --amp] [--rounds 7]

loss   InfoNCE of N·49 queries against K keys, forward and backward: time and extra memory.
step   One training step: the losses of a batch and their gradients. The floor is the work that no
       implementation can leave out, each part timed alone in the same round: the backbone's forward
       and backward of view 1 and forward of view 2, both necks, and the loss's two matrix products
       and one softmax.

Everything is measured in turn, round after round, so that a drift of the machine meets all alike.
Printed are the median and the range over rounds, and the median of each round's ratios.
"""

import common
import torch
from mmengine.registry import DefaultScope
from torch.nn.functional import normalize


def build(package, algorithm, head, neck, args):
    with DefaultScope.overwrite_default_scope(package):
        if package == 'mmdense':
            from mmdense.registry import MODELS
        else:
            from mmpretrain.registry import MODELS
        model = MODELS.build(
            dict(
                type=algorithm,
                queue_len=args.queue_len,
                feat_dim=128,
                backbone=dict(type='mmpretrain.ResNet', depth=args.depth, zero_init_residual=False),
                neck=dict(neck, in_channels=2048 if args.depth >= 50 else 512, hid_channels=2048),
                head=head,
            )
        )
    return model.to(args.device).train()


def their_head():
    return dict(
        type='mmpretrain.ContrastiveHead',
        loss=dict(type='mmpretrain.CrossEntropyLoss'),
        temperature=0.2,
    )


# ------------------------------------------------------------------------------------------- loss


def loss_functions(args):
    from mmpretrain.registry import MODELS

    from mmdense.models.losses import info_nce

    rows = args.batch_size_loss * 49
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1).requires_grad_()
    key = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    head = MODELS.build(their_head())

    def theirs():
        # as in mmpretrain's DenseCL.loss
        positive = (query * key).sum(1).unsqueeze(-1)
        negative = torch.einsum('nc,ck->nk', [query, queue.clone().detach()])
        return head.loss(positive, negative)

    def ours():
        return info_nce(query, key, queue, 0.2)

    losses = dict(mmpretrain=theirs, mmdense=ours)
    return {name: common.gradient_step(loss, [query], args) for name, loss in losses.items()}


def benchmark_loss(args):
    title = f'InfoNCE: {args.batch_size_loss} images × 49 queries, K = {args.queue_len}, C = 128'
    common.compare_losses(title, loss_functions, args, queue_len=64)


# ------------------------------------------------------------------------------------------- step


def floor_functions(model, args):
    """The parts of the floor; model is ours, its twin is the other view's."""
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=args.device)
    with torch.no_grad(), common.autocast(args):
        feature = model.backbone(images)[-1]
    cells = feature.size(2) * feature.size(3)
    rows = args.batch_size * (cells + 1)
    query = normalize(torch.randn(rows, 128, device=args.device), dim=1)
    queue = normalize(torch.randn(128, args.queue_len, device=args.device), dim=0)
    matrix = torch.empty(rows, args.queue_len, device=args.device)

    def necks():
        leaf = feature.detach().requires_grad_()
        with common.autocast(args):
            out = model.neck((leaf,))
        torch.autograd.backward(out, [torch.ones_like(o) for o in out])
        with torch.no_grad(), common.autocast(args):
            model.encoder_k.module[1]((feature,))

    def products():
        torch.mm(query, queue, out=matrix)

    def softmax():
        torch.softmax(matrix, dim=1, out=matrix)

    def gradient():
        torch.mm(matrix, queue.t())

    return {
        'backbone': common.forward_backward(model.backbone, [images], args),
        'twin_backbone': common.forward(model.encoder_k.module[0], [images], args),
        **{f.__name__: f for f in (necks, products, softmax, gradient)},
    }


def benchmark_step(args):
    print(
        f'Step: R{args.depth}, batch {args.batch_size}, {args.size} px, K = {args.queue_len}, '
        f'{common.setting(args)}'
    )
    neck = dict(type='mmdense.DenseCLNeck', out_channels=128)
    ours = build('mmdense', 'DenseCL', dict(type='InfoNCEHead', temperature=0.2), neck, args)
    neck = dict(type='mmpretrain.DenseCLNeck', out_channels=128)
    theirs = build('mmpretrain', 'DenseCL', their_head(), neck, args)
    neck = dict(type='mmpretrain.MoCoV2Neck', out_channels=128)
    moco = build('mmpretrain', 'MoCo', their_head(), neck, args)
    views = [
        torch.randn(args.batch_size, 3, args.size, args.size, device=args.device) for _ in range(2)
    ]

    parts = floor_functions(ours, args)
    models = {
        name: common.training_step(model, (views, None), args)
        for name, model in (
            ('mmdense DenseCL', ours),
            ('mmpretrain DenseCL', theirs),
            ('mmpretrain MoCo v2', moco),
        )
    }
    times = common.measure({**parts, **models}, args)
    floor = common.total(times, parts)
    bare = common.total(times, ['backbone', 'twin_backbone'])
    for name in parts:
        common.report(f'  {name}', times[name])
    common.report('bare backbone', bare)
    common.report('floor', floor, bare)
    print('… over the bare backbone:')
    for name in models:
        common.report(name, times[name], bare)
    print('… over the floor:')
    for name in models:
        common.report(name, times[name], floor)
    common.report(
        'mmdense DenseCL over MoCo v2', times['mmdense DenseCL'], times['mmpretrain MoCo v2']
    )


def main():
    parser = common.parser(__doc__)
    common.add_step_options(parser)
    parser.add_argument('--queue-len', type=int, default=65536)
    common.run(parser.parse_args(), benchmark_loss, benchmark_step)


if __name__ == '__main__':
    main()
