# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""PixPro's loss beside its formula written out, and its step beside the floor.

    python benchmarks/pixpro.py [loss] [step] [--device cuda --amp] [--rounds 7]

loss   One direction of pixel-to-propagation consistency, from the projections and boxes of two
       views, forward and backward: time and extra memory.
step   One training step: the losses of a batch, with the twin's update, and their gradients. The
       floor is the work that no implementation can leave out, each part timed alone in the same
       round: backbone and projector of both views, forward and backward, and forward in the twin,
       the transform of the propagated values, and the losses' matrix products.

Everything is measured in turn, round after round, so that a drift of the machine meets all alike.
Printed are the median and the range over rounds, and the median of each round's ratios.
"""

import common
import torch
from common import product
from torch import nn

from mmdense.registry import MODELS

# ------------------------------------------------------------------------------------------- loss


def written_out(transform, z, target, box_q, box_k):
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


def loss_functions(args):
    head = MODELS.build(common.model_config('pixpro_r50', args.depth).head).to(args.device)
    n, grid = args.batch_size_loss, args.size // 32
    z, target = torch.randn(2, n, 256, grid, grid, device=args.device)
    boxes = common.random_boxes(n, args.device)
    z.requires_grad_()
    leaves = [z, *head.parameters()]
    losses = {
        'written out': lambda: written_out(head.value_transform, z, target, *boxes),
        'mmdense': lambda: head.loss(z, target, *boxes),
    }
    return {name: common.gradient_step(loss, leaves, args) for name, loss in losses.items()}


def benchmark_loss(args):
    cells = (args.size // 32) ** 2
    title = f'Pixel consistency: {args.batch_size_loss} images × {cells} cells, C = 256'
    values = common.compare_losses(title, loss_functions, args, batch_size_loss=2)
    if not args.amp:
        common.check_equal(values)


# ------------------------------------------------------------------------------------------- step


def floor_parts(model, views, args):
    parts = common.encoder_parts(model, views, args)
    with torch.no_grad():
        z = [model.neck(model.backbone(view)).requires_grad_() for view in views]
    if not isinstance(model.head.value_transform, nn.Identity):
        parts['transform'] = common.forward_backward(model.head.value_transform, z, args)
    n, c, s = z[0].flatten(2).shape
    direction = [
        product((n, s, c), (n, c, s)),  # similarity of the cells of a view
        product((n, c, s), (n, s, s)),  # propagation
        product((n, s, c), (n, c, s), (True, False)),  # cosine to the target
    ]
    parts['products'] = common.matrix_products(2 * direction, args)
    return parts


def benchmark_step(args):
    print(f'Step: R{args.depth}, batch {args.batch_size}, {args.size} px, {common.setting(args)}')
    config = common.model_config('pixpro_r50', args.depth)
    model = common.build(dict(config, total_steps=1000), args)
    views, samples = common.random_batch(args)
    step = common.training_step(model, (views, samples), args)
    common.compare_step('PixPro', step, floor_parts(model, views, args), args)


def main():
    parser = common.parser(__doc__)
    common.add_step_options(parser)
    common.run(parser.parse_args(), benchmark_loss, benchmark_step)


if __name__ == '__main__':
    main()
