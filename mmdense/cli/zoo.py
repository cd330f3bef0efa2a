# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense list`` and ``mmdense download``."""

from argparse import Namespace


def add_list(command) -> None:
    """Its arguments."""
    command.add_argument('pattern', nargs='?', help='only those with this in their name')


def run_list(args: Namespace) -> None:
    """Prints the recipes."""
    from mmdense import hub
    from mmdense.utils.errors import InputError

    names = hub.list_models(args.pattern)
    if args.pattern and not names:
        raise InputError(f'no recipe has {args.pattern!r} in its name: `mmdense list` prints all')
    width = max(map(len, names), default=0)
    for name in names:
        weights = hub.find_weights(name)
        kind = 'no weights' if weights is None else "authors'" if weights.by_authors else 'full'
        print(f'{name:{width}}  {kind}')


def add_download(command) -> None:
    """Its arguments."""
    command.add_argument('name', help='as `mmdense list` prints it')
    command.add_argument('--dest', default='.', help='folder to write to (default: this one)')


def run_download(args: Namespace) -> None:
    """Downloads, and prints the path."""
    from mmdense import hub

    print(hub.download(args.name, args.dest))
