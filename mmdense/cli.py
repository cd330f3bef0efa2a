# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The command ``mmdense``, which is also ``python -m mmdense``."""

import argparse
from typing import List, Optional

from mmdense import hub
from mmdense.utils.launch import one_line_errors


def main(arguments: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='mmdense', description='Recipes and their weights')
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser('list', help='print the recipes, and what was published for them')
    command.add_argument('pattern', nargs='?', help='only those with this in their name')
    command.set_defaults(run=_list)

    command = commands.add_parser('download', help='download the published weights of a recipe')
    command.add_argument('name', help='as `mmdense list` prints it')
    command.add_argument('--dest', default='.', help='folder to write to (default: this one)')
    command.set_defaults(run=_download)

    args = parser.parse_args(arguments)
    with one_line_errors():
        args.run(args)


def _list(args) -> None:
    names = hub.list_models(args.pattern)
    width = max(map(len, names), default=0)
    for name in names:
        weights = hub.find_weights(name)
        kind = 'no weights' if weights is None else "authors'" if weights.by_authors else 'full'
        print(f'{name:{width}}  {kind}')


def _download(args) -> None:
    print(hub.download(args.name, args.dest))
