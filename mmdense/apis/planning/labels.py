# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Find labelled images that features are scored on in training, in any usual layout."""

import os.path as osp
from collections import Counter
from typing import NamedTuple, Optional

import numpy as np
from mmengine.utils import scandir
from PIL import Image

from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError, InputError

from .survey import open_images

MOST = 50  # images of each: DenseEvaluationHook's max_images


class Labels(NamedTuple):
    """Describe labelled images.

    Attributes:
        data (dict): Argument of :class:`~mmdense.engine.DenseEvaluationHook`.
        about (str): Classes and numbers of images, for the table.
    """

    data: dict
    about: str


def survey_labels(
    path: str, prefix: Optional[str] = None, ignore_label: Optional[int] = None
) -> Labels:
    """Find the labels that features are scored by.

    Args:
        path (str): A COCO ``.json`` with boxes; a folder as Pascal VOC has it (``JPEGImages``,
            ``Annotations``, ``ImageSets/Main/train.txt``); or one as mmseg has it
            (``img_dir/train``, and ``ann_dir/train`` with label maps). Without a ``val`` every
            fourth image is tested on.
        prefix (str, optional): The folder that a json's paths are relative to. By default it is
            looked for where COCO has it.
        ignore_label (int, optional): The number of pixels in label maps that do not count.
            Defaults to 255.

    Raises:
        DataError: When the path is none of these, or a part is missing.
        InputError: When there is ``ignore_label`` without label maps.
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
        labels = dict(type='mmdense.LabelledMaps', data_root=path, **_read_maps(path, ignore_label))
        if not has('img_dir/val'):
            labels['test'] = None
    else:
        raise DataError(
            f'{path} is no COCO json with boxes, nor a folder with JPEGImages and Annotations '
            '(Pascal VOC), nor one with img_dir and ann_dir (mmseg)'
        )
    if ignore_label is not None and labels['type'] != 'mmdense.LabelledMaps':
        raise InputError(f'--ignore-label {ignore_label} is for label maps, {path} has boxes')
    built = DATASETS.build(labels)  # raises an error for a part that is missing
    if labels['type'] == 'mmdense.LabelledMaps':
        about = f'{built.num_classes} classes, {built.ignore_index} does not count'
    else:
        about = f'boxes of {", ".join(built.classes)}'
        if len(built.classes) > 4:
            about = f'boxes of {len(built.classes)} classes'
    train, test = _format_used(built.train), _format_used(built.test)
    return Labels(labels, f'{about}; {train} images, tested on {test}')


def _format_used(images: list) -> str:
    """Return how many images are used."""
    return str(len(images)) if len(images) <= MOST else f'{MOST} of {len(images):,}'


def _read_maps(root: str, ignore_label: Optional[int]) -> dict:
    """Return the number of classes, by the largest number except that of pixels that do not
    count, and the images' suffix."""
    folder, numbers, first = osp.join(root, 'ann_dir'), set(), {}
    for name in scandir(folder, '.png', recursive=True):
        path = osp.join(folder, name)
        try:
            with Image.open(path) as file:
                found = np.asarray(file)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'cannot read label map {path}: {error}') from None
        if found.ndim != 2:
            raise DataError(
                f'label map {path} is {"×".join(map(str, found.shape))}: it needs a class number '
                'for each pixel, in one channel or a palette'
            )
        for number in set(np.unique(found).tolist()) - numbers:
            numbers.add(number)
            first[number] = path
    ignored = 255 if ignore_label is None else ignore_label
    if ignored != 255 and 255 in numbers:
        raise DataError(
            f'{first[255]} has 255 next to --ignore-label {ignored}: one number alone can stand '
            'for pixels that do not count'
        )
    if ignore_label is not None and ignored not in numbers:
        raise DataError(
            f'--ignore-label {ignored}: no label map of {folder} has that number, leave it out'
        )
    classes = max(numbers - {ignored}, default=0) + 1
    names = scandir(osp.join(root, 'img_dir'), recursive=True)
    suffixes = Counter(osp.splitext(name)[1] for name in names)
    suffix = suffixes.most_common(1)[0][0] if suffixes else '.jpg'
    maps = dict(num_classes=classes, img_suffix=suffix)
    return maps if ignored == 255 else dict(maps, ignore_index=ignored)
