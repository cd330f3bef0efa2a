# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Errors that a user can cause.

Each has one line that says what is wrong, where, and what to do. The tools print that line alone.
"""

import linecache
import os
import sys
import traceback
from contextlib import contextmanager
from typing import Iterator


class MMDenseError(ValueError):
    """Base class of these errors; a ``ValueError``, so that callers need not know it."""


class InputError(MMDenseError):
    """Report a batch or an argument that an algorithm cannot work with."""


class DataError(MMDenseError):
    """Report a data set that cannot be read or is too small."""


class MissingImagesError(DataError):
    """None of the images that a list or a json names exists.

    Args:
        message (str): What is wrong, where, and what to do.
        first (str): Where the first image was looked for.
    """

    def __init__(self, message: str, first: str) -> None:
        super().__init__(message)
        self.first = first


class CheckpointError(MMDenseError):
    """Report a file that is no checkpoint, or one that is damaged, unsafe or does not fit."""


class InUseError(MMDenseError):
    """Report a folder or file that another process works on."""


# The hint of one_line_errors at the complete traceback; a command line may set its own flag.
shows_all = 'MMDENSE_TRACEBACK=1'


@contextmanager
def one_line_errors(*also: type) -> Iterator[None]:
    """End the program with one line on an error that the user can fix.

    Args:
        also: Exception classes that a user can cause within this block, in addition to
            :class:`MMDenseError`. MMDENSE_TRACEBACK=1 shows complete tracebacks.
    """
    try:
        yield
    except (MMDenseError, *also) as error:
        if os.environ.get('MMDENSE_TRACEBACK'):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if text.startswith('Caught ') and 'Original Traceback' in text:
            # From a data loader's worker, with its traceback; the message is the last line.
            text = text.strip().splitlines()[-1].split('Error: ', 1)[-1]
        message = ' '.join(text.split())
        if len(message) > 500 and not isinstance(error, MMDenseError):  # a config, printed
            message = f'{message[:300]} … {message[-100:]}'
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f'{os.fsdecode(error.filename)}: {error.strerror}'
        elif not isinstance(error, MMDenseError):  # a reader may need the place
            *_, frame = traceback.walk_tb(error.__traceback__)
            if not message:
                message = linecache.getline(frame[0].f_code.co_filename, frame[1]).strip()
            where = '/'.join(frame[0].f_code.co_filename.split(os.sep)[-2:])
            message += f' ({type(error).__name__} at {where}:{frame[1]}; {shows_all} shows all)'
        print(f'mmdense: error: {message}', file=sys.stderr, flush=True)
        raise SystemExit(1) from None


# Exceptions that a wrong value in a config raises while modules are built.
CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
