# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define the command ``mmdense``, which is also ``python -m mmdense``.

One file a group of commands. Of each, ``add_NAME(parser)`` declares the arguments and
``run_NAME(args)`` does the work; what is slow to import is imported in the latter, so that help and
completion come at once.

Results go to stdout; progress, messages and errors to stderr. Exit codes: 0 done, 1 an error that
one line explains, 2 wrong usage, 130 interrupted; 141 where the reader of the output has gone, as
of any program before ``| head``. No colours of our own; NO_COLOR is heeded by those of others.
"""

from .main import build_parser, main

__all__ = ['build_parser', 'main']
