# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import argparse
import os
import select
import sys
from importlib import import_module
from typing import List, NamedTuple, Optional

import mmdense

from .output import add_output, output


class _Command(NamedTuple):
    """Describe a command.

    Attributes:
        name (str): Its name. ``add_NAME`` and ``run_NAME`` of the module define it, and
            ``check_NAME``, where there is one, what is checked before the slow imports.
        module (str): Module of this package.
        help (str): A line for its help.
    """

    name: str
    module: str
    help: str


COMMANDS = [
    _Command('pretrain', 'pretrain', 'pretrain a backbone on images; needs no config'),
    _Command('plan', 'pretrain', 'say what pretrain would do, and how long it would take'),
    _Command('check', 'check', 'what a checkpoint is, and what a detector would take of it'),
    _Command('export', 'export', 'write the backbone for torchvision, timm, mmpretrain, ONNX'),
    _Command('show', 'show', 'pictures of what a checkpoint sees in images'),
    _Command('report', 'report', 'one page of a run: curves, warnings, pictures'),
    _Command('list', 'zoo', 'print the recipes, and what was published for them'),
    _Command('download', 'zoo', 'download the published weights of a recipe'),
    _Command('env', 'env', 'print what a bug report needs'),
    _Command('completion', 'completion', 'print a script that completes commands by tab'),
]


# commands that work without PyTorch and MMEngine
_LIGHT = ('list', 'env', 'completion')


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='mmdense',
        usage='mmdense [-h] [-V] [-q | -v] [--debug] COMMAND ...',
        description='Pretrain backbones for dense prediction on images without labels.',
        epilog='`mmdense COMMAND --help` says more, also of -q, -v and --debug.',
    )
    about = f'mmdense {mmdense.__version__}'
    parser.add_argument('-V', '--version', action='version', version=about)
    parser.set_defaults(quiet=False, verbose=False, debug=False)
    add_output(parser, shown=False)
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', title='commands')
    for command in COMMANDS:
        module = import_module(f'.{command.module}', __package__)
        sub = subparsers.add_parser(
            command.name,
            prog=f'mmdense {command.name}',
            help=command.help,
            description=f'{command.help[0].upper()}{command.help[1:]}.',
        )
        getattr(module, f'add_{command.name}')(sub)
        add_output(sub.add_argument_group('output'))
        sub.set_defaults(
            run=getattr(module, f'run_{command.name}'),
            check=getattr(module, f'check_{command.name}', None),
            light=command.name in _LIGHT,
            parser=sub,
        )
    return parser


def main(arguments: Optional[List[str]] = None) -> None:
    """Run a command.

    Args:
        arguments (list[str], optional): Defaults to those of the process.

    Raises:
        SystemExit: With the exit code, where it is not 0.
    """
    try:
        for stream in (sys.stdout, sys.stderr):  # a terminal that has no '×' gets another sign
            if hasattr(stream, 'reconfigure'):
                stream.reconfigure(errors='backslashreplace')
        parser = build_parser()
        args, unknown = parser.parse_known_args(arguments)
        parser = getattr(args, 'parser', parser)  # the command's own, which says how to use it
        if unknown:
            parser.error(f'unrecognized arguments: {" ".join(unknown)}')
        if args.command is None:
            parser.print_help(sys.stderr)
            raise SystemExit(2)
        if args.quiet and args.verbose:
            parser.error('--quiet and --verbose exclude each other')
        _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print('mmdense: interrupted', file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _reader_left():
            raise
        raise SystemExit(141) from None


def prepare() -> None:
    """Import what a command that is not light needs, as cheaply as possible.

    Raises:
        ImportError: A package is missing or does not fit.
    """
    from mmdense.utils.log_level import suppress_third_party_warnings
    from mmdense.utils.slow_imports import shorten_imports

    mmdense.prepare()
    shorten_imports()
    suppress_third_party_warnings()


def _run(args: argparse.Namespace) -> None:
    """Run a command; an error that the user can fix is one line."""
    from mmdense.utils.errors import MMDenseError, one_line_errors

    if args.check is not None:
        with output(args), one_line_errors():
            args.check(args)
    if not args.light:
        with output(args), one_line_errors():
            try:
                prepare()
            except ImportError as error:
                raise MMDenseError(str(error)) from error
    with output(args), one_line_errors(OSError):
        try:
            args.run(args)
        except BrokenPipeError as error:
            broken = error  # an OSError, which is no error
        else:
            broken = None
    if broken is not None:
        raise broken


def _reader_left() -> bool:
    """Return whether nobody reads the output any more; Python then ends without a complaint."""
    left = False
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream, 0)
            gone = any(event & select.POLLERR for _, event in poll.poll(0))
        except (AttributeError, OSError, ValueError):  # not of POSIX, or no file
            gone = False
        if gone:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        left = left or gone
    return left
