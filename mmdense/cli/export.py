# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Run ``mmdense export``."""

import sys
from argparse import ArgumentParser, Namespace


def add_export(command: ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument('checkpoint', help='path or URL of any that `mmdense check` knows')
    command.add_argument(
        '--to', required=True, choices=['torchvision', 'timm', 'detectron2', 'mmpretrain', 'onnx']
    )
    command.add_argument(
        '--out',
        metavar='FILE',
        help='the file to write, .safetensors too (default: CHECKPOINT_TO here)',
    )
    command.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=[224, 224],
        metavar=('H', 'W'),
        help='size of images that an ONNX file is tested with; it takes all (default: 224 224)',
    )
    command.add_argument('--prefix', help='take the tensors below this prefix')


def check_export(args: Namespace) -> None:
    """Check the paths."""
    from mmdense.utils.paths import check_checkpoint, check_writable

    check_checkpoint(args.checkpoint)
    if args.out:
        check_writable(args.out)


def run_export(args: Namespace) -> None:
    """Write the file, and print the code that loads it."""
    from mmdense.checkpoints.targets import export_checkpoint

    done = export_checkpoint(args.checkpoint, args.to, args.out, args.prefix, args.size)
    if not args.quiet:
        print(done.about, file=sys.stderr)
    print(done.code)
