# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find the range of values that images of 16 bits use: full range may leave a few gray levels."""

from typing import Iterable, NamedTuple, Optional, Tuple

import numpy as np

from .transforms.loading import read_values

_LEVELS = 64  # gray levels of 256 that are enough
_MOST = 16  # images that are decoded


class UsedRange(NamedTuple):
    """Describe the values of a sample of 16-bit images.

    Attributes:
        low (int): Smallest value that is no outlier (0.1 % of an image).
        high (int): Largest one.
        images (int): Number of images in the sample.
    """

    low: int
    high: int
    images: int

    @property
    def levels(self) -> int:
        """Return the gray levels that the full range leaves, of 256."""
        return (self.high >> 8) - (self.low >> 8) + 1

    @property
    def value_range(self) -> Tuple[int, int]:
        """Return a ``value_range`` of :class:`~mmdense.datasets.LoadImage` that keeps all values:
        from 0 to a power of two, or where the values are far from 0, their own ends."""
        top = 1 << max(self.high, 1).bit_length()
        return (0, top) if 4 * self.low < top else (self.low, self.high + 1)

    def __str__(self) -> str:
        levels = f'{self.levels} gray level{"s" if self.levels > 1 else ""}'
        return (
            f'16-bit images use {self.low:,} to {self.high:,} of 0 to 65,535 (sample of '
            f'{self.images}): in full range {levels} of 256 would be left'
        )


def find_narrow_range(contents: Iterable[bytes]) -> Optional[UsedRange]:
    """Return the range of values that 16-bit images use, where that is narrow.

    Args:
        contents (Iterable[bytes]): Image files, of which the first 16 with 16 bits are decoded.

    Returns:
        UsedRange, optional: None where the images have 8 bits, or 64 gray levels of 256 are left.
    """
    ends = []
    for content in contents:
        try:
            values = read_values(content)
        except ValueError:
            continue
        if values.dtype == np.uint16:
            ends.append(np.percentile(values, [0.1, 99.9]))
        if len(ends) == _MOST:
            break
    if not ends:
        return None
    low, high = np.array(ends).T
    used = UsedRange(int(low.min()), int(np.ceil(high.max())), len(ends))
    return used if used.levels < _LEVELS else None
