# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A step of LARS on ResNet's parameters: mmpretrain's, ours, and SGD as the floor.

    python benchmarks/lars.py [--device cuda] [--depth 50] [--rounds 21]

Measured in turn, round after round, so that a drift of the machine meets all alike. Printed are the
median and the range over rounds, and the median of each round's ratios to mmpretrain's. "host": the
time until the call returns, with the GPU still at work.
"""

import common
import torch
from mmpretrain.engine.optimizers import LARS as Theirs
from mmpretrain.models import ResNet

from mmdense.engine import LARS

OPTIONS = dict(lr=0.1, momentum=0.9, weight_decay=1e-5)


def make_step(build, args):
    """A step on parameters and gradients of its own."""
    params = list(ResNet(depth=args.depth).to(args.device).parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    return build(params).step


def theirs(params):
    groups = [
        dict(params=[p for p in params if p.ndim > 1]),
        dict(params=[p for p in params if p.ndim <= 1], weight_decay=0.0, lars_exclude=True),
    ]
    return Theirs(groups, **OPTIONS)


def main():
    args = common.parser(__doc__, rounds=21).parse_args()
    torch.manual_seed(0)
    steps = {
        'mmpretrain LARS': make_step(theirs, args),
        'mmdense LARS': make_step(lambda params: LARS(params, **OPTIONS), args),
        'torch SGD': make_step(
            lambda params: torch.optim.SGD(params, foreach=True, **OPTIONS), args
        ),
    }
    times = {name: [] for name in steps}
    for i in range(args.rounds + 2):  # two rounds to warm up
        for name, step in steps.items():
            seconds = common.timed(step, args)
            if i >= 2:
                times[name].append(seconds)
    print(f'LARS: R{args.depth}, {args.device}, {torch.get_num_threads()} threads')
    for kind, label in enumerate(('host', 'whole')):
        if args.device == 'cpu' and kind == 0:
            continue
        print(f'{label}:')
        base = [seconds[kind] for seconds in times['mmpretrain LARS']]
        for name in steps:
            common.report(name, [seconds[kind] for seconds in times[name]], base)


if __name__ == '__main__':
    main()
