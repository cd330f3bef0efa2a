# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The losses beside their formulas written out, and beside the peers': time and extra memory.

    python benchmarks/loss.py METHOD                    # a file of benchmarks/methods
    python benchmarks/loss.py METHOD --device cuda --amp float16

All forward and backward. In float32 the values must agree to 1e-5, else the script fails. Extra
memory is what a call needs at most beyond its inputs; each is measured in a process of its own.
"""

import common
import methods
import models


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
    losses, leaves = methods.load(args.algorithm).losses(args)[loss]
    return gradient_step(losses[version], leaves, args)


def check_equal(values):
    """Check that the versions of a loss agree, in float32 to 1e-5."""
    ours = values['mmdense']
    if any(abs(value - ours) > 1e-5 * max(1, abs(ours)) for value in values.values()):
        raise AssertionError(f'the losses differ: {values}')


def compare_losses(args):
    title, method = models.title(args.algorithm), methods.load(args.algorithm)
    words = [f'{args.batch_size} images', f'{(args.size // 32) ** 2} cells']
    setting = common.setting(args, *words, method.SETTING.format(**vars(args)))
    rows = []
    for loss, (losses, leaves) in method.losses(args).items():
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
    parser.add_argument('algorithm', choices=methods.names())
    common.add_model_options(parser, batch_size=32)
    args = parser.parse_args()
    common.prepare(args)
    common.finish(args, compare_losses(args))


if __name__ == '__main__':
    main()
