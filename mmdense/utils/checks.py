# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Arguments of modules, checked where a config's value comes in."""

from math import inf

from .errors import InputError


def check_counts(**values) -> None:
    """Each must be a whole number of at least 1.

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise InputError(f'{name} must be a whole number of at least 1, got {value!r}')


def check_above_zero(**values) -> None:
    """Each must be a finite number above 0.

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 < value < inf:
            raise InputError(f'{name} must be a number above 0, got {value!r}')


def check_fractions(**values) -> None:
    """Each must be in [0, 1].

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise InputError(f'{name} must be in [0, 1], got {value!r}')


def check_below_one(**values) -> None:
    """Each must be in [0, 1).

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise InputError(f'{name} must be in [0, 1), got {value!r}')


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
