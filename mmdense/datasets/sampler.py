# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Iterator

from mmengine.dataset import DefaultSampler

from mmdense.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """Sample as MMEngine's ``DefaultSampler``, from the middle of an epoch too, and number samples.

    The number is ``(seed · 2³² + epoch + 1) · len(dataset) + index``. :class:`UnlabeledDataset`
    takes the image of that index, and seeds its randomness from the number: the views of a run
    depend neither on the number of workers nor on interruptions. So does :class:`SeededDataset`;
    other data sets get plain indices.

    Args:
        *args: Arguments of MMEngine's class.
        **kwargs: Arguments of MMEngine's class.
    """

    _position = 0

    def start_at(self, position: int) -> None:
        """Leave out the first samples of this process in the next epoch only.

        Args:
            position (int): Number of samples to leave out.
        """
        self._position = position

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())[self._position :]
        self._position = 0
        # the class's attribute: a wrapper with another length passes instance attributes on
        if not getattr(type(self.dataset), 'takes_numbers', False):
            return iter(indices)
        # + 1: numbers below len(dataset) are plain indices, without a seed
        first = (self.seed * 2**32 + self.epoch + 1) * len(self.dataset)
        return (first + index for index in indices)
