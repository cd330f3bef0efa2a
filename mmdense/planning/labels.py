# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Labelled images that features are scored on in training, in whichever layout they are."""

import os.path as osp
from collections import Counter
from typing import Optional

import numpy as np
from mmengine.utils import scandir
from PIL import Image

from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError

from .survey import open_images


def survey_labels(path: str, prefix: Optional[str] = None) -> dict:
    """``data`` of a :class:`~mmdense.engine.DenseEvaluationHook`.

    Args:
        path (str): A COCO ``.json`` with boxes; a folder as Pascal VOC has it (``JPEGImages``,
            ``Annotations``, ``ImageSets/Main/train.txt``); or one as mmseg has it
            (``img_dir/train``, and ``ann_dir/train`` with label maps). Without a ``val`` every
            fourth image is tested on.
        prefix (str, optional): The folder that a json's paths are relative to. By default it is
            looked for where COCO has it.

    Raises:
        DataError: It is none of these, or something of it is missing.
    """
    path = osp.abspath(osp.expanduser(path))

    def has(*names: str) -> bool:
        return all(osp.exists(osp.join(path, name)) for name in names)

    if path.lower().endswith('.json') and osp.isfile(path):
        images = open_images(path, prefix)[0]['data_prefix']
        where = dict(data_root=osp.dirname(path), train=osp.basename(path), img_path=images)
        labels = dict(type='mmdense.LabelledBoxes', test=None, **where)
    elif has('JPEGImages', 'Annotations'):
        test = 'ImageSets/Main/val.txt'
        labels = dict(
            type='mmdense.LabelledBoxes', data_root=path, test=test if has(test) else None
        )
    elif has('img_dir', 'ann_dir'):
        labels = dict(type='mmdense.LabelledMaps', data_root=path, **_maps(path))
        if not has('img_dir/val'):
            labels['test'] = None
    else:
        raise DataError(
            f'{path} is no COCO json with boxes, nor a folder with JPEGImages and Annotations '
            '(Pascal VOC), nor one with img_dir and ann_dir (mmseg)'
        )
    DATASETS.build(labels)  # says what is missing
    return labels


def _maps(root: str) -> dict:
    """How many classes there are, by the largest number but 255, which is none; and the images'
    suffix."""
    folder, largest = osp.join(root, 'ann_dir'), 0
    for name in scandir(folder, '.png', recursive=True):
        with Image.open(osp.join(folder, name)) as file:
            numbers = np.unique(np.asarray(file))
        largest = max(largest, int(numbers[numbers != 255].max(initial=0)))
    names = scandir(osp.join(root, 'img_dir'), recursive=True)
    suffixes = Counter(osp.splitext(name)[1] for name in names)
    suffix = suffixes.most_common(1)[0][0] if suffixes else '.jpg'
    return dict(num_classes=largest + 1, img_suffix=suffix)
