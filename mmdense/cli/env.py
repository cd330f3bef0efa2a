# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Define ``mmdense env``."""

from argparse import ArgumentParser, Namespace
from contextlib import suppress


def add_env(command: ArgumentParser) -> None:
    """Add no arguments."""


def run_env(args: Namespace) -> None:
    """Print the facts of the environment, one a line."""
    from .main import prepare

    with suppress(ImportError):  # the facts say what is missing
        prepare()
        import mmdense.checkpoints  # noqa: F401 - registers the restricted loader
    from mmdense.utils.collect_env import collect_env

    facts = collect_env()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f'{name:{width}}  {value}')
