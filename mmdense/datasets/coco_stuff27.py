# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""COCO-Stuff with the 27 super-categories of its label hierarchy."""

import os.path as osp
from typing import Dict, List

from mmengine.dataset import BaseDataset

from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError

from .image_lists import read_image_list

# The hierarchy is published in github.com/nightrome/cocostuff10k, dataset/code/CocoStuffClasses.m.
# The order of the 27 classes is that of fine_to_coarse_dict.pickle in
# github.com/janghyuncho/PiCIE, which github.com/xu-ji/IIC made of it (cocostuff_hierarchy.y) and
# DenseSiam's code reads. Behind each class: its labels in stuffthingmaps, which are the ids of
# github.com/nightrome/cocostuff, labels.md, less 1. Labels 0 to 90 are things, 91 to 181 stuff.
_HIERARCHY: Dict[str, List[int]] = {
    'electronic-things': [*range(71, 77)],
    'appliance-things': [*range(77, 83)],
    'food-things': [*range(51, 61)],
    'furniture-things': [*range(61, 71)],
    'indoor-things': [*range(83, 91)],
    'kitchen-things': [*range(43, 51)],
    'accessory-things': [*range(25, 33)],
    'animal-things': [*range(15, 25)],
    'outdoor-things': [*range(9, 15)],
    'person-things': [0],
    'sports-things': [*range(33, 43)],
    'vehicle-things': [*range(1, 9)],
    'ceiling-stuff': [101, 102],
    'floor-stuff': [100, 113, 114, 115, 116, 117],
    'food-stuff': [120, 121, 152, 169],
    'furniture-stuff': [97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164],
    'rawmaterial-stuff': [99, 131, 138, 142],
    'textile-stuff': [91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167],
    'wall-stuff': [*range(170, 177)],
    'window-stuff': [179, 180],
    'building-stuff': [94, 95, 127, 150, 157, 165],
    'ground-stuff': [110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158],
    'plant-stuff': [93, 96, 118, 123, 128, 133, 141, 162, 168],
    'sky-stuff': [105, 156],
    'solid-stuff': [126, 134, 149, 159, 161, 181],
    'structural-stuff': [98, 112, 137, 145, 163],
    'water-stuff': [119, 147, 154, 177, 178],
}

CLASSES = tuple(_HIERARCHY)


@DATASETS.register_module()
class CocoStuff27(BaseDataset):
    """List the images of COCO-Stuff with labels of 27 classes, for evaluation without labels in
    training.

    The benchmark of IIC (https://arxiv.org/abs/1807.06653) and PiCIE
    (https://arxiv.org/abs/2103.17070): 12 classes of things and 15 of stuff, the super-categories
    of COCO-Stuff. The curated images are those of a list of PiCIE's repository,
    ``curated/val2017/Coco164kFull_Stuff_Coarse_7.txt`` (2,175 images; 49,629 in ``train2017``),
    with an image's number on each line.

    A sample's ``label_map`` maps the 182 labels of ``stuffthingmaps`` (255 is unlabelled) to the
    27, for mmseg's ``LoadAnnotations``.

    Args:
        ann_file (str): List of the names of images, with or without ``.jpg``. '' takes no list.
        data_prefix (dict): ``img_path``, the folder of the images, and ``seg_map_path``, that of
            the label maps: ``000000000139.png`` for ``000000000139.jpg``.
        kwargs: Arguments of MMEngine's ``BaseDataset``.

    Raises:
        DataError: The list is missing or empty.
    """

    METAINFO = dict(classes=CLASSES, num_things=12)

    def load_data_list(self) -> List[dict]:
        """Return paths, label map and what mmseg's ``LoadAnnotations`` asks for, of each image."""
        if not osp.isfile(self.ann_file):
            raise DataError(
                f'cannot read the image list {self.ann_file or "(ann_file is empty)"}: CocoStuff27 '
                "needs PiCIE's list of curated images, ann_file"
            )
        with open(self.ann_file, 'rb') as file:
            names = read_image_list(file.read(), self.ann_file)
        folders = self.data_prefix
        label_map = {label: i for i, labels in enumerate(_HIERARCHY.values()) for label in labels}
        return [
            dict(
                img_path=osp.join(folders['img_path'], f'{osp.splitext(name)[0]}.jpg'),
                seg_map_path=osp.join(folders['seg_map_path'], f'{osp.splitext(name)[0]}.png'),
                label_map=label_map,
                reduce_zero_label=False,
                seg_fields=[],
            )
            for name in names
        ]
