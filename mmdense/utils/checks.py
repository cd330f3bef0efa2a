# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Checks of modules' arguments, where a config's value comes in."""

from math import isfinite
from numbers import Real
from typing import Any, Callable

from .errors import InputError


def is_number(value: Any) -> bool:
    """Return whether a value is a real number: Python's or NumPy's, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, fits: Callable[[float], bool], meaning: str) -> None:
    """Check that a value is a finite number for which ``fits`` is true.

    Args:
        name (str): Name of the argument, for the message.
        value (Any): The value.
        fits (Callable): Takes the number and returns a bool.
        meaning (str): The range in words, such as 'a number from 0'.

    Raises:
        InputError: It is no such number; with its name and value.
    """
    if not (is_number(value) and isfinite(value) and fits(value)):
        raise InputError(f'{name} must be {meaning}, got {value!r}')


def check_whole(minimum: int, **values) -> None:
    """Check that each value is an int of at least ``minimum``.

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        if type(value) is not int or value < minimum:
            raise InputError(f'{name} must be a whole number of at least {minimum}, got {value!r}')


def check_counts(**values) -> None:
    """Check that each value is an int of at least 1.

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    check_whole(1, **values)


def check_above_zero(**values) -> None:
    """Check that each value is a finite number above 0.

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        check_number(name, value, lambda number: number > 0, 'a number above 0')


def check_fractions(**values) -> None:
    """Check that each value is in [0, 1].

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        check_number(name, value, lambda number: 0 <= number <= 1, 'in [0, 1]')


def check_below_one(**values) -> None:
    """Check that each value is in [0, 1).

    Raises:
        InputError: With the name and the value of the first that is not.
    """
    for name, value in values.items():
        check_number(name, value, lambda number: 0 <= number < 1, 'in [0, 1)')
