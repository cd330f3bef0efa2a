# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Train a config in one of the processes of ``mmdense pretrain --gpus N``. Each runs

python -m mmdense.cli.training CONFIG [-q | -v] [flags of tools/train.py]
"""

import argparse
from typing import List, Optional

from mmdense.utils.log_level import suppress_third_party_warnings
from mmdense.utils.slow_imports import shorten_imports

shorten_imports()  # before the imports below
suppress_third_party_warnings()

from mmdense.apis.pretraining import train_config  # noqa: E402
from mmdense.engine.training import train_parser  # noqa: E402

from .output import add_output, output  # noqa: E402


def parse_args(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the arguments of tools/train.py, ``-q``, ``-v`` and ``--debug``."""
    parser = train_parser()
    parser.set_defaults(quiet=False, verbose=False, debug=False)
    add_output(parser)
    return parser.parse_args(arguments)


def main() -> None:
    """Train."""
    args = parse_args()
    with output(args):
        train_config(args, args.quiet, args.verbose)


if __name__ == '__main__':
    main()
