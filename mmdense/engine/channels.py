# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Compare the channels of the images with those of the model, before the first step."""

from typing import Any, Iterator, Optional

from mmpretrain.utils import get_ori_model
from torch import nn
from torch.utils.data import Dataset

from mmdense.datasets import LoadImage
from mmdense.models.utils import input_channels
from mmdense.utils.errors import InputError


def check_channels(model: nn.Module, dataset: Dataset) -> None:
    """Make sure that the images have as many channels as the model takes.

    Args:
        model (nn.Module): The algorithm.
        dataset (Dataset): Its data set. One without :class:`~mmdense.datasets.LoadImage` is not
            checked.

    Raises:
        InputError: There are others.
    """
    model = get_ori_model(model)
    load = find_loader(dataset)
    if load is None or not hasattr(model, 'get_product'):
        return
    taken = input_channels(model.get_product())
    normalised = getattr(model.data_preprocessor, 'channels', None)
    if taken not in (None, load.channels):
        raise InputError(
            f'the images have {load.channels} channels, the backbone takes {taken}: set '
            f'in_channels={load.channels} of the backbone, or channels={taken} of LoadImage; and '
            'as many values of mean and std in data_preprocessor'
        )
    if normalised not in (None, load.channels):
        raise InputError(
            f'the images have {load.channels} channels, mean and std of data_preprocessor '
            f'{normalised} values: give {load.channels} of each'
        )


def find_loader(dataset: Any) -> Optional[LoadImage]:
    """Return the transform that loads the images of a data set, also of one in wrappers; None
    where it is not of mmdense."""
    return next((step for step in _walk_steps(dataset) if isinstance(step, LoadImage)), None)


def _walk_steps(dataset: Any) -> Iterator[Any]:
    yield from getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from _walk_steps(inner)
