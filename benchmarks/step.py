# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A whole training step over its own floor, and beside the peers'.

    python benchmarks/step.py METHOD                    # a file of benchmarks/methods
    python benchmarks/step.py METHOD --device cuda --amp float16 --batch-size 64
    python benchmarks/step.py lars --rounds 21          # the optimiser's step alone

A step is the losses of a batch, with the updates of twin, queues and centers, and their gradients.
The floor is the work that no implementation can leave out, each part timed alone in the same
round; the method's file says which. The parts run in our model's memory format; --cfg-options
changes our model.
"""

import common
import methods
import models
import torch

from mmdense.utils.memory import keep_freed_memory


def compare_steps(args):
    """Rows of one algorithm: over the floor, over the bare backbone, beside the peers."""
    title, method = models.title(args.algorithm), methods.load(args.algorithm)
    mine = f'mmdense {args.algorithm}'
    peers = [p for p in method.PEERS if not p.startswith('lightly') or common.peer('lightly.loss')]
    keep_freed_memory()
    model, batch = models.algorithm(mine, args), models.random_batch(mine, args)
    steps = {mine: models.training_step(model, batch, args)}
    steps[mine]()  # the first makes the twin a copy
    views = batch[0]
    if model.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    parts, also = method.floor(model, views, args)
    steps.update((name, models.step(name, args)) for name in peers)

    words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
    setting = common.setting(args, *words, method.SETTING.format(**vars(args)), also)
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
        backbone = dict(type='ResNet', depth=args.depth)
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
    parser.add_argument('algorithm', choices=[*methods.names(), 'lars'])
    common.add_model_options(parser)
    args = parser.parse_args()
    common.prepare(args)
    common.finish(args, compare_lars(args) if args.algorithm == 'lars' else compare_steps(args))


if __name__ == '__main__':
    main()
