# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""``mmdense env``."""

from argparse import ArgumentParser, Namespace


def add_env(command: ArgumentParser) -> None:
    """Its arguments: none."""


def run_env(args: Namespace) -> None:
    """Prints them, one a line."""
    from mmdense.utils.collect_env import collect_env

    facts = collect_env()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f'{name:{width}}  {value}')
