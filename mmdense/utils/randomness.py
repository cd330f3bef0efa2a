# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Randomness that follows from where a run is, so that nothing of it has to be stored."""

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def seed_all(*numbers: int, devices: bool = True) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators from any numbers ≥ 0.

    Args:
        numbers (int): Of any size; others give unrelated streams.
        devices (bool): Also the generators of PyTorch's devices.
    """
    # with their number: 0 alone would be the same as 0 and 0
    words = np.random.SeedSequence((len(numbers), *numbers)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the host's generators for a block, and leaves them as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*numbers, devices=False)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
