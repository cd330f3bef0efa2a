# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import argparse
import os
import sys
from importlib import import_module
from typing import List, NamedTuple, Optional

import mmdense


class _Command(NamedTuple):
    name: str
    module: str
    help: str


COMMANDS = [
    _Command('list', 'zoo', 'print the recipes, and what was published for them'),
    _Command('download', 'zoo', 'download the published weights of a recipe'),
]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='mmdense',
        description='Pretrain backbones for dense prediction on images without labels.',
        epilog='`mmdense COMMAND --help` says more.',
    )
    parser.add_argument('--version', action='version', version=f'mmdense {mmdense.__version__}')
    common = argparse.ArgumentParser(add_help=False)
    options = common.add_argument_group('output')
    loudness = options.add_mutually_exclusive_group()
    loudness.add_argument(
        '-q', '--quiet', action='store_true', help='print results and errors only'
    )
    loudness.add_argument('-v', '--verbose', action='store_true', help='print more')
    options.add_argument(
        '--debug', action='store_true', help='show the whole traceback of an error'
    )
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for command in COMMANDS:
        module = import_module(f'.{command.module}', __package__)
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=f'{command.help[0].upper()}{command.help[1:]}.',
            parents=[common],
        )
        getattr(module, f'add_{command.name}')(sub)
        sub.set_defaults(run=getattr(module, f'run_{command.name}'))
    return parser


def main(arguments: Optional[List[str]] = None) -> None:
    """Runs a command.

    Args:
        arguments (list[str], optional): Defaults to those of the process.

    Raises:
        SystemExit: With the exit code, where it is not 0.
    """
    args = build_parser().parse_args(arguments)
    if args.debug:
        os.environ['MMDENSE_TRACEBACK'] = '1'
    from mmdense.utils.launch import one_line_errors

    try:
        with one_line_errors(OSError):
            args.run(args)
    except KeyboardInterrupt:
        print('mmdense: interrupted', file=sys.stderr)
        raise SystemExit(130) from None
