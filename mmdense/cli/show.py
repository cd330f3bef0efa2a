# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define ``mmdense show``."""

from argparse import Namespace


def add_show(command) -> None:
    """Declare the arguments."""
    command.add_argument('checkpoint', help='of a training run, exported, or published')
    command.add_argument(
        'images', nargs='+', help='folders or files of images; further checkpoints'
    )
    command.add_argument(
        '--out', default='work_dirs/show', metavar='DIR', help='folder to write to'
    )
    command.add_argument(
        '--point',
        nargs=2,
        type=float,
        metavar=('X', 'Y'),
        default=(0.5, 0.5),
        help='what others are compared to, in fractions of width and height (default: 0.5 0.5)',
    )
    command.add_argument('--number', type=int, default=4, help='images of each folder (default: 4)')
    command.add_argument(
        '--size', type=int, default=512, help='longer side of the images (default: 512)'
    )
    command.add_argument('--config', help="the run's config, if the checkpoint does not hold it")


def check_show(args: Namespace) -> None:
    """Check the paths."""
    import os.path as osp

    from mmdense.utils.paths import check_checkpoint, check_config, check_images, check_writable

    check_checkpoint(args.checkpoint)
    for path in args.images:
        check_images(path, 'images, or a folder, a zip or an LMDB of them')
    if args.config:
        check_config(args.config)
    check_writable(osp.join(args.out, 'index.html'))


def run_show(args: Namespace) -> None:
    """Write pictures and a page, and print their paths."""
    from mmdense.apis.report.show import show
    from mmdense.utils.errors import CONFIG_ERRORS, one_line_errors

    point = tuple(args.point)
    with one_line_errors(*CONFIG_ERRORS):
        paths = show(
            args.checkpoint, args.images, args.out, point, args.number, args.size, args.config
        )
    print('\n'.join(paths))
