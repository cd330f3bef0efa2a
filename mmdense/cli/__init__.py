# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The command ``mmdense``, which is also ``python -m mmdense``.

One file a group of commands. Of each, ``add_NAME(parser)`` declares the arguments and
``run_NAME(args)`` does the work; what is slow to import is imported in the latter, so that help and
completion come at once.

Exit codes: 0 done, 1 an error that one line explains, 2 wrong usage, 130 interrupted.
"""

from .main import build_parser, main

__all__ = ['build_parser', 'main']
