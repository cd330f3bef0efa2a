# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Train as tools/train.py does, for ``mmdense pretrain``.

The hundreds of lines before the first step are in the log file only. With ``--gpus N`` each
process runs

    python -m mmdense.cli.training CONFIG [-q | -v] [flags of tools/train.py]
"""

import argparse
import io
import logging
import re
import sys
from contextlib import redirect_stdout
from typing import List, Optional

from mmengine.dist import is_main_process

from mmdense.utils.log_level import suppress_third_party_warnings
from mmdense.utils.mmengine_patches import remove_hooks

suppress_third_party_warnings()  # before the imports below

from mmdense.engine import ProgressBarHook  # noqa: E402
from mmdense.engine.launch import train  # noqa: E402
from mmdense.engine.training import prepare_training, train_parser  # noqa: E402

from .output import add_output, output  # noqa: E402


def parse_args(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the arguments of tools/train.py, ``-q``, ``-v`` and ``--debug``."""
    parser = train_parser()
    parser.set_defaults(quiet=False, verbose=False, debug=False)
    add_output(parser)
    return parser.parse_args(arguments)


def train_config(args: argparse.Namespace) -> None:
    """Train. MMEngine's lines are progress and go to stderr; warnings are shown.

    Args:
        args (argparse.Namespace): What :func:`parse_args` gives.
    """
    hidden = io.StringIO()
    with redirect_stdout(sys.stderr if args.verbose else hidden):
        runner = prepare_training(args)
    shown = '- .*ERROR' if args.quiet else '- .*(WARNING|ERROR)'
    for line in hidden.getvalue().splitlines() if is_main_process() else ():
        if re.match(rf'\S+ \S+ - mmengine {shown}', line):
            print(line, file=sys.stderr)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not hasattr(handler, 'baseFilename'):
            handler.setStream(sys.stderr)
            handler.setLevel('ERROR' if args.quiet else handler.level)
    if args.quiet:
        remove_hooks(runner, ProgressBarHook)
    with redirect_stdout(hidden if args.quiet else sys.stderr):
        train(runner)


def main() -> None:
    """Run one of several processes."""
    args = parse_args()
    with output(args):
        train_config(args)


if __name__ == '__main__':
    main()
