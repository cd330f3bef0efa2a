# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""The errors that a user can cause, each with one line that says what is
wrong, where, and what to do. The tools print that line alone."""


class MMDenseError(ValueError):
    """Base of all of them; a ``ValueError``, so that callers need not know it."""


class InputError(MMDenseError):
    """A batch or an argument that an algorithm cannot work with."""


class DataError(MMDenseError):
    """A data set that cannot be read or is too small."""


class CheckpointError(MMDenseError):
    """A checkpoint that is not one, is damaged, unsafe or does not fit."""


class InUseError(MMDenseError):
    """A folder that another process works in."""
