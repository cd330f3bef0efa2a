# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define ``mmdense report``."""

from argparse import Namespace


def add_report(command) -> None:
    """Declare the arguments."""
    command.add_argument('dir', help='the work directory of a run, finished or not')
    command.add_argument('--out', help='the file to write (default: report.html in it)')


def check_report(args: Namespace) -> None:
    """Check the paths."""
    import os.path as osp

    from mmdense.utils.paths import check_run, check_writable

    check_run(args.dir)
    check_writable(args.out or osp.join(args.dir, 'report.html'))


def run_report(args: Namespace) -> None:
    """Write the report, and print its path."""
    from mmdense.apis.report.report import write_report

    print(write_report(args.dir, args.out))
