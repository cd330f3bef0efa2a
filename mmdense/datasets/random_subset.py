# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Union

import numpy as np
from mmengine.dataset import BaseDataset

from mmdense.registry import DATASETS
from mmdense.utils.checks import check_above_zero, check_fractions
from mmdense.utils.errors import DataError


@DATASETS.register_module(name='RandomSubset')
def random_subset(dataset: Union[dict, BaseDataset], share: float, seed: int = 42) -> BaseDataset:
    """Return a random part of a data set, for training with few labels.

    With mmdet's ``CocoDataset`` the images are those of DETReg's code
    (https://arxiv.org/abs/2106.04550, section 4): a seed chooses among the sorted image numbers.

    Args:
        dataset (dict | BaseDataset): The data set; each sample has ``img_id``.
        share (float): Share of the images, in (0, 1]. Rounded to whole images.
        seed (int): Seed of NumPy's ``default_rng``. Defaults to 42.

    Returns:
        BaseDataset: The same data set with these samples alone.

    Raises:
        DataError: The share is less than one image.
    """
    check_above_zero(share=share)
    check_fractions(share=share)
    dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
    dataset.full_init()
    places = {dataset.get_data_info(i)['img_id']: i for i in range(len(dataset))}
    number = round(len(places) * share)
    if number < 1:
        raise DataError(
            f'{share:g} of the {len(places)} images is less than one: set a larger share'
        )
    chosen = np.random.default_rng(seed).choice(sorted(places), number, replace=False)
    return dataset.get_subset([places[one] for one in chosen])
