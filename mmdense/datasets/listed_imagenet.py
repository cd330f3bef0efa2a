# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""A part of ImageNet by a list, for 1 % and 10 % of the labels."""

import os
import os.path as osp
from pathlib import Path
from typing import List

from mmengine.dataset import BaseDataset

from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError

from .image_lists import read_image_list


@DATASETS.register_module()
class ListedImageNet(BaseDataset):
    """List the images of ImageNet that a file names, with the labels of their folders.

    The file has one name a line, ``n01440764_10026.JPEG``, as the lists of SimCLR's repository
    for 1 % and 10 % of the labels (``imagenet_subsets/1percent.txt``); or one below its folder,
    ``n01440764/n01440764_10026.JPEG``. A label is the place of the folder among all, sorted.

    Args:
        list_file (str): Path of the file.
        split (str): Folder of the images below ``data_root``. Defaults to 'train'.
        **kwargs: As of MMEngine's ``BaseDataset``.

    Raises:
        DataError: The list cannot be read, or has an image of a folder that is not there.
    """

    def __init__(self, list_file: str, split: str = 'train', **kwargs) -> None:
        self.list_file = list_file
        super().__init__(data_prefix=dict(img_path=split), **kwargs)

    def load_data_list(self) -> List[dict]:
        """Return ``img_path`` and ``gt_label`` of each image, in the order of the file."""
        images = self.data_prefix['img_path']
        folders = sorted(entry.name for entry in os.scandir(images) if entry.is_dir())
        labels = {name: label for label, name in enumerate(folders)}
        found = []
        try:
            content = Path(self.list_file).read_bytes()
        except OSError as e:
            raise DataError(f'cannot read the image list {self.list_file}: {e.strerror}') from None
        for name in read_image_list(content, self.list_file):
            folder, _, file = name.rpartition('/')
            folder = folder or file.split('_')[0]
            if folder not in labels:
                raise DataError(
                    f'{self.list_file} names {name}, but {images} has no folder {folder}'
                )
            path = osp.join(images, folder, file)
            found.append(dict(img_path=path, gt_label=labels[folder]))
        return found
