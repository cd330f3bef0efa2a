# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define ``mmdense list`` and ``mmdense download``."""

import sys
from argparse import Namespace


def add_list(command) -> None:
    """Declare the arguments."""
    command.add_argument('pattern', nargs='?', help='only those with this in their name')


def run_list(args: Namespace) -> None:
    """Print the recipes."""
    from mmdense.apis import hub
    from mmdense.utils.errors import InputError

    names = hub.list_models(args.pattern)
    if args.pattern and not names:
        raise InputError(f'no recipe has {args.pattern!r} in its name: `mmdense list` prints all')
    known = hub.short_names()
    short = [known.get(name, '-') for name in names]
    # a long name may reach into the next column: most terminals have 100
    widths = [
        min(max(map(len, column), default=0), limit) for column, limit in ((names, 44), (short, 24))
    ]
    for name, alias in zip(names, short):
        weights = hub.find_weights(name)
        kind = 'no weights' if weights is None else "authors'" if weights.by_authors else 'full'
        if weights is not None and weights.restriction:
            kind += ', non-commercial'
        print(f'{name:{widths[0]}}  {alias:{widths[1]}}  {kind}')


def add_download(command) -> None:
    """Declare the arguments."""
    command.add_argument('name', help='as `mmdense list` prints it')
    command.add_argument(
        '--dest', default='.', metavar='DIR', help='folder to write to (default: this one)'
    )


def check_download(args: Namespace) -> None:
    """Check the name."""
    from mmdense.apis import hub

    hub.find_weights(args.name)


def run_download(args: Namespace) -> None:
    """Download the weights, and print the path."""
    from mmdense.apis import hub

    weights = hub.find_weights(args.name)
    if weights is not None and weights.restriction:
        print(f'the license of these weights is {weights.restriction}', file=sys.stderr)
    print(hub.download(args.name, args.dest))
