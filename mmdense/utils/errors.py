# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The errors that a user can cause, each with one line that says what is
wrong, where, and what to do. The tools print that line alone."""

import linecache
import os
import sys
import traceback
from contextlib import contextmanager
from typing import Iterator


class MMDenseError(ValueError):
    """Base of all of them; a ``ValueError``, so that callers need not know it."""


class InputError(MMDenseError):
    """A batch or an argument that an algorithm cannot work with."""


class DataError(MMDenseError):
    """A data set that cannot be read or is too small."""


class MissingImagesError(DataError):
    """None of the images that a list or a json names exists."""


class CheckpointError(MMDenseError):
    """A checkpoint that is not one, is damaged, unsafe or does not fit."""


class InUseError(MMDenseError):
    """A folder that another process works in."""


# What a line of one_line_errors says about the rest; a command line may have its own way.
shows_all = 'MMDENSE_TRACEBACK=1'


@contextmanager
def one_line_errors(*also: type) -> Iterator[None]:
    """Ends the program with one line on an error that the user can mend.

    Args:
        also: Exception classes that are the user's within this block, besides
            :class:`MMDenseError`. MMDENSE_TRACEBACK=1 shows all of them whole.
    """
    try:
        yield
    except (MMDenseError, *also) as error:
        if os.environ.get('MMDENSE_TRACEBACK'):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if text.startswith('Caught ') and 'Original Traceback' in text:
            # From a data loader's worker, with its traceback; the message comes last.
            text = text.strip().splitlines()[-1].split('Error: ', 1)[-1]
        message = ' '.join(text.split())
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f'{os.fsdecode(error.filename)}: {error.strerror}'
        elif not isinstance(error, MMDenseError):  # may need its context to be understood
            *_, frame = traceback.walk_tb(error.__traceback__)
            if not message:
                message = linecache.getline(frame[0].f_code.co_filename, frame[1]).strip()
            where = '/'.join(frame[0].f_code.co_filename.split(os.sep)[-2:])
            message += f' ({type(error).__name__} at {where}:{frame[1]}; {shows_all} shows all)'
        print(f'mmdense: error: {message}', file=sys.stderr, flush=True)
        raise SystemExit(1) from None


# What a wrong value in a config raises while things are built from it.
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
