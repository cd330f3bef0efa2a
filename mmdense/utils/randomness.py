# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Randomness that is derived from a run's position, so that none of it has to be stored."""

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def seed_all(*numbers: int, devices: bool = True) -> None:
    """Seed Python's, NumPy's and PyTorch's generators from any numbers ≥ 0.

    Args:
        numbers (int): Numbers of any size; different ones give unrelated streams.
        devices (bool): Whether to seed the generators of PyTorch's devices too. Defaults to True.
    """
    # with the count of numbers: (0,) and (0, 0) would be the same
    words = np.random.SeedSequence((len(numbers), *numbers)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the host's generators for a block, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*numbers, devices=False)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
