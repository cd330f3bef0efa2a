# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Any, Union

from mmengine.dataset import BaseDataset

from mmdense.registry import DATASETS
from mmdense.utils.randomness import seeded

from .workers import init_worker


@DATASETS.register_module()
class SeededDataset:
    """Wrap a data set of any package, so that an interrupted run meets the same samples again.

    :class:`ResumableSampler` numbers the samples of a run; the pipeline of the data set inside
    draws its random numbers from a seed by that number: what a sample looks like depends neither
    on the number of workers nor on interruptions.

    Args:
        dataset (dict | BaseDataset): The data set, such as mmdet's ``CocoDataset``.
    """

    takes_numbers = True  # see ResumableSampler

    def __init__(self, dataset: Union[dict, BaseDataset]) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.full_init()

    @property
    def metainfo(self) -> dict:
        """Return the meta information of the data set inside, such as its classes."""
        return self.dataset.metainfo

    def get_data_info(self, idx: int) -> dict:
        """Return what the data set inside knows of a sample."""
        return self.dataset.get_data_info(idx % len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        """Return a sample by its index, or by one of :class:`ResumableSampler`'s numbers."""
        init_worker()
        if number < len(self):
            return self.dataset[number]
        with seeded(number):
            return self.dataset[number % len(self)]
