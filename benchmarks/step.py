# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A whole training step over its own floor, and beside the peers'.

    python benchmarks/step.py METHOD                    # a file of benchmarks/methods
    python benchmarks/step.py METHOD --device cuda --amp float16 --batch-size 64
    python benchmarks/step.py lars --rounds 21          # the optimiser's step alone
    python benchmarks/step.py compile --depth 18        # torch.compile, all algorithms
    python benchmarks/step.py bfloat16                  # beside float32, all algorithms

A step is the losses of a batch, with the updates of twin, queues and centers, and their gradients.
The floor is the work that no implementation can leave out, each part timed alone in the same
round; the method's file says which. The parts run in our model's memory format; --cfg-options
changes our model.
"""

import argparse

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
    words += [args.model] if args.model else []
    setting = common.setting(args, *words, method.SETTING.format(**vars(args)), also)
    print(f'Step of {title}: {setting}')
    times = common.measure({**parts, **steps}, args)
    for part in parts:
        common.show(f'  {part}', times[part], common.unit_of(times[part]))
    against = {
        'floor': common.total(times, parts),
        'bare backbone': common.total(times, [p for p in parts if p.endswith('backbone')]),
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


# ------------------------------------------------------------------------------------ other ways

WAYS = {  # name of the way and of the usual one, and what is set for each
    'compile': (
        ('torch.compile', {'cfg_options': {'model.compile': True}}),
        ('without', {'cfg_options': {'model.compile': False}}),
    ),
    'bfloat16': (('bfloat16', dict(amp='bfloat16')), ('float32', dict(amp=None))),
}


def compare_ways(args):
    """Steps of several algorithms in another way, beside the usual one."""
    keep_freed_memory()
    rows = []
    for algorithm in args.algorithms:
        name = f'mmdense {algorithm}'
        batch = models.random_batch(name, args)
        steps = {}
        for way, changes in WAYS[args.algorithm]:
            options = argparse.Namespace(**{**vars(args), **changes})
            options.cfg_options = {**(args.cfg_options or {}), **(options.cfg_options or {})}
            step = models.training_step(models.algorithm(name, options), batch, options)
            step()  # compiles, and makes the twin a copy
            steps[way] = step
        (way, ours), *usual = common.measure(steps, args).items()
        words = [f'R{args.depth}', f'batch {args.batch_size}', f'{args.size} px']
        title = f'{models.title(algorithm)}, {way}'
        unit = common.unit_of(ours)
        rows += common.rows(title, common.setting(args, *words), unit, ours, dict(usual))
    return rows


# ------------------------------------------------------------------------------------ the optimiser


def lars_step(name, args):
    """Build mmdense's LARS, mmpretrain's or SGD over a ResNet's parameters; return its step.

    The first step was made, so that the momentum buffers are there.
    """
    from mmpretrain.engine.optimizers import LARS as Theirs

    from mmdense.engine import LARS

    backbone = dict(type='ResNet', depth=args.depth)
    params = list(models.build(backbone, 'mmpretrain', args).parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    options = dict(lr=0.1, momentum=0.9, weight_decay=1e-5)
    if name == 'mmdense':
        optimizer = LARS(params, **options)
    elif name == 'mmpretrain LARS':
        plain = [p for p in params if p.ndim <= 1]
        groups = [
            dict(params=[p for p in params if p.ndim > 1]),
            dict(params=plain, weight_decay=0.0, lars_exclude=True),
        ]
        optimizer = Theirs(groups, **options)
    else:
        # by itself PyTorch takes foreach on a GPU, and a loop over the parameters on a CPU
        foreach = True if name == FOREACH else None
        optimizer = torch.optim.SGD(params, foreach=foreach, **options)
    optimizer.step()
    return optimizer.step


FOREACH = 'torch SGD, foreach'


def compare_lars(args):
    """Time a step of LARS on a ResNet's parameters, beside mmpretrain's LARS and PyTorch's SGD."""
    names = ['mmdense', 'mmpretrain LARS', 'torch SGD', FOREACH]
    steps = {name: lars_step(name, args) for name in names}
    setting, rows = common.setting(args, f'R{args.depth}'), []
    # on a GPU also the time until the call returns, with the GPU still at work
    for what, which in (('LARS', 1), ('LARS, host', 0))[: 1 + (args.device == 'cuda')]:
        times = common.measure(steps, args, which)
        ours = times.pop('mmdense')
        rows += common.rows(what, setting, 'ms', ours, times)
    small = dict(depth=18)
    peak = {name: [common.peak_memory(lars_step, name, args, small)] for name in names}
    ours = peak.pop('mmdense')
    return rows + common.rows('LARS, extra memory', setting, 'MiB', ours, peak)


def main():
    parser = common.parser(__doc__)
    parser.add_argument('algorithm', choices=[*methods.names(), *WAYS, 'lars'])
    common.add_model_options(parser)
    parser.add_argument('--model', help="a variant: the beginning of a config's name")
    names = list(models.ALGORITHMS)
    parser.add_argument(
        '--algorithms', nargs='+', choices=names, default=names, help='of compile, bfloat16'
    )
    args = parser.parse_args()
    common.prepare(args)
    compare = {**dict.fromkeys(WAYS, compare_ways), 'lars': compare_lars}.get(
        args.algorithm, compare_steps
    )
    common.finish(args, compare(args))


if __name__ == '__main__':
    main()
