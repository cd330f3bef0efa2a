# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""DetCo's losses beside their formulas written out, and its step beside the floor.

    python benchmarks/detco.py [loss] [step] [--device cuda --amp]

loss   All twelve of N images, four stages by three pairings, against the eight queues of K keys,
       forward and backward: time and extra memory.
step   One training step: the losses of a batch, with the update of the twin and the queues, and
       their gradients. The floor is the work that no implementation can leave out, each part timed
       alone in the same round: backbone and heads of the queries' views and patches, forward and
       backward, and of the keys', forward in the twin, and the losses' matrix products.

Everything is measured in turn, round after round, so that a drift of the machine meets all alike.
Printed are the median and the range over rounds, and the median of each round's ratios.
"""

import common
import torch
from common import product
from mmengine.config import Config
from torch.nn.functional import cross_entropy, normalize

from mmdense.models.losses import info_nce
from mmdense.models.utils import split_patches

PAIRS = (('global', 'global'), ('local', 'local'), ('local', 'global'))  # query, key and queue


def info_nce_written_out(query, key, queue):
    positive, negative = (query * key).sum(1, keepdim=True), query @ queue.clone().detach()
    logits = torch.cat([positive, negative], dim=1) / 0.2
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def loss_functions(args):
    def vectors(*shape, dim=-1):
        return normalize(torch.randn(4, *shape, device=args.device), dim=dim)

    n, k = args.batch_size_loss, args.queue_len
    query = {kind: vectors(n, 128).requires_grad_() for kind in ('global', 'local')}
    key = {kind: vectors(n, 128) for kind in query}
    queue = {kind: vectors(128, k, dim=1) for kind in query}

    def by(loss):
        return lambda: sum(
            weight * loss(query[q][i], key[kind][i], queue[kind][i])
            for i, weight in enumerate((0.1, 0.4, 0.7, 1.0))
            for q, kind in PAIRS
        )

    losses = {'written out': by(info_nce_written_out), 'mmdense': by(info_nce)}
    leaves = list(query.values())
    return {name: common.gradient_step(loss, leaves, args) for name, loss in losses.items()}


def benchmark_loss(args):
    title = f'Twelve losses: {args.batch_size_loss} images, eight queues of K = {args.queue_len}'
    values = common.compare_losses(title, loss_functions, args, queue_len=64)
    if not args.amp:
        common.check_equal(values)


def floor_parts(model, views, patches, args):
    def every_map(encode, x):
        """Forward and backward through all of a backbone's maps, or of the heads."""

        def run():
            model.zero_grad()
            with common.autocast(args):
                out = encode(x)
            out = [o for o in out if o.requires_grad]
            torch.autograd.backward(out, [torch.ones_like(o) for o in out])

        return run

    patches = split_patches(patches, model.neck.grid)
    backbone, neck = model.encoder_k.module
    with torch.no_grad(), common.autocast(args):
        maps, patch_maps = model.backbone(views), model.backbone(patches)
    leaves = [[m.clone().requires_grad_() for m in x] for x in (maps, patch_maps)]
    n, c, k = len(views), model.queues_global[0].feat_dim, args.queue_len
    return {
        'backbone, views': every_map(model.backbone, views),
        'backbone, patches': every_map(model.backbone, patches),
        'twin_backbone, views': common.forward(backbone, [views], args),
        'twin_backbone, patches': common.forward(backbone, [patches], args),
        'heads': every_map(lambda x: model.neck(x[0]) + model.neck.forward_local(x[1]), leaves),
        'twin_heads': common.forward(
            lambda x: neck(x[0]) + neck.forward_local(x[1]), [(maps, patch_maps)], args
        ),
        'products': common.matrix_products([product((n, c), (c, k), (True, False))] * 12, args),
    }


def benchmark_step(args):
    config = Config.fromfile(str(common.CONFIGS / '_base_' / 'models' / 'detco_r50.py')).model
    config.backbone.depth = args.depth
    model = common.build(dict(config, queue_len=args.queue_len), args)
    n = args.batch_size
    shapes = [(n, 3, args.size, args.size)] * 2 + [(n, 3, args.patch_size, 9 * args.patch_size)] * 2
    inputs = [torch.randn(shape, device=args.device) for shape in shapes]
    step = common.training_step(model, (inputs,), args)
    step()
    print(
        f'Step: R{args.depth}, batch {n}, {args.size} px and nine patches of {args.patch_size} px, '
        f'K = {args.queue_len}, {common.setting(args)}'
    )
    parts = floor_parts(model, inputs[0], inputs[2], args)
    times = common.measure({**parts, 'DetCo': step}, args)
    floor = common.total(times, parts)
    for part in parts:
        common.report(f'  {part}', times[part])
    common.report('floor', floor)
    common.report('DetCo, over the floor', times['DetCo'], floor)


def main():
    parser = common.parser(__doc__)
    common.add_step_options(parser)
    parser.add_argument('--queue-len', type=int, default=65536)
    parser.add_argument('--patch-size', type=int, default=64)
    common.run(parser.parse_args(), benchmark_loss, benchmark_step)


if __name__ == '__main__':
    main()
