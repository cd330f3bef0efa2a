# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import argparse
import os
import sys
import warnings
from argparse import SUPPRESS
from contextlib import contextmanager
from typing import Callable, Iterator, Sequence


def add_output(group, shown: bool = True) -> None:
    """Add ``-q``, ``-v`` and ``--debug``, before and after the command.

    They have no defaults, or the second place would overwrite the first.
    """
    loudness = group.add_mutually_exclusive_group()
    for flags, about in (
        (('-q', '--quiet'), 'print results and errors only'),
        (('-v', '--verbose'), 'print more'),
    ):
        _add_flag(loudness, flags, about if shown else SUPPRESS)
    _add_flag(group, ['--debug'], 'show the whole traceback of an error' if shown else SUPPRESS)


def _add_flag(group, flags: Sequence[str], about: str) -> None:
    group.add_argument(*flags, action='store_true', default=SUPPRESS, help=about)


@contextmanager
def output(args: argparse.Namespace) -> Iterator[None]:
    """Send the logs and warnings of other packages to stderr, as many as were asked for."""
    from mmdense.utils import errors

    restore = _direct_logger(args)
    traceback = os.environ.get('MMDENSE_TRACEBACK')
    errors.shows_all, shows_all = '--debug', errors.shows_all
    if args.debug:
        os.environ['MMDENSE_TRACEBACK'] = '1'
    try:
        with warnings.catch_warnings():
            if not args.verbose and not args.debug:
                warnings.simplefilter('ignore')
            yield
    finally:
        errors.shows_all = shows_all
        restore()
        if args.debug and traceback is None:
            del os.environ['MMDENSE_TRACEBACK']


def _direct_logger(args: argparse.Namespace) -> Callable[[], None]:
    """Send MMEngine's logger to stderr, if it is imported; return the function that restores it."""
    if 'mmengine.dist' not in sys.modules:  # the logger imports it, and it PyTorch: seconds
        return lambda: None
    import logging

    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    handlers = [h for h in logger.handlers if type(h) is logging.StreamHandler]
    level, streams = logger.level, [handler.stream for handler in handlers]
    for handler in handlers:
        handler.stream = sys.stderr
    logger.setLevel('ERROR' if args.quiet else 'INFO' if args.verbose else 'WARNING')

    def restore() -> None:
        logger.setLevel(level)
        for handler, stream in zip(handlers, streams):
            handler.stream = stream

    return restore
