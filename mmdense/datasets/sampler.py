# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Iterator

from mmengine.dataset import DefaultSampler

from mmdense.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler``, which can begin in the middle of an epoch
    and numbers what it draws.

    The number is ``(seed · 2³² + epoch + 1) · len(dataset) + index``.
    :class:`UnlabeledDataset` takes the image of that index, and its randomness
    from the number: the views of a run depend neither on how many workers make
    them nor on where it was interrupted. Other data sets get plain indices.

    Args:
        *args: Of MMEngine's.
        **kwargs: Of MMEngine's.
    """

    _position = 0

    def start_at(self, position: int) -> None:
        """Leave out the first samples of this process in the next epoch only.

        Args:
            position (int): How many.
        """
        self._position = position

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())[self._position :]
        self._position = 0
        # of the class: a wrapper with another length hands attributes through
        if not getattr(type(self.dataset), 'takes_numbers', False):
            return iter(indices)
        # + 1: below len(dataset) is an index, without a seed
        first = (self.seed * 2**32 + self.epoch + 1) * len(self.dataset)
        return (first + index for index in indices)
