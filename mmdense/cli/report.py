# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense report``."""

from argparse import Namespace


def add_report(command) -> None:
    """Its arguments."""
    command.add_argument('dir', help='the work directory of a run, finished or not')
    command.add_argument('--out', help='the file to write (default: report.html in it)')


def run_report(args: Namespace) -> None:
    """Writes the page, and prints its path."""
    from mmdense.apis.report.report import write_report

    print(write_report(args.dir, args.out))
