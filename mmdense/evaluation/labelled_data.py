# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Read labelled images that features are evaluated on: label maps, or boxes."""

import json
import os.path as osp
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple
from zlib import crc32

import numpy as np
import torch
from mmengine.utils import scandir
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import box_iou, roi_align

from mmdense.datasets import LoadImage, UnreadableImageError
from mmdense.registry import DATASETS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import DataError, InputError

# Features M×C to scores M×K, and a confusion matrix K×K: true class × predicted.
Classifier = Callable[[Tensor], Tensor]
Labelled = Tuple[Tensor, Tensor]


class LabelledImage(NamedTuple):
    """Hold an image, and its label: a file, or boxes and classes."""

    path: str
    label: Any


class _Labelled:
    """Split and read images with label maps or boxes.

    Attributes:
        train (List[LabelledImage]): Images that classifiers are fitted to, in the
            order of the paths.
        test (List[LabelledImage]): Images that classifiers are measured on.
        num_classes (int): K.
        load (LoadImage): Reads the images.
    """

    load = LoadImage()

    def _set(self, train: List[LabelledImage], test: Optional[List[LabelledImage]]) -> None:
        """Sort the images; without ``test`` take every fourth image of ``train``."""
        train = sorted(train)
        if test is None:
            if len(train) < 2:
                raise DataError(f'{len(train)} labelled images cannot be split into train and test')
            test = train[3::4] or train[-1:]
            train = [image for image in train if image not in test]
        both = {i.path for i in train} & {i.path for i in test}
        if both:
            raise DataError(
                f'{len(both)} images are in train and in test, such as {min(both)}: separate them, '
                'or give test=None, which takes every fourth of train'
            )
        self.train, self.test = train, sorted(test)

    def read(self, image: LabelledImage) -> Tuple[np.ndarray, Any]:
        """Return the pixels, H×W×C uint8, BGR with 3 channels, and the label.

        Raises:
            DataError: When one of them cannot be read, or they do not fit.
        """
        try:
            pixels = self.load.transform(dict(img_path=image.path))['img']
        except UnreadableImageError as error:
            raise DataError(str(error)) from None
        return pixels, self._label(image, pixels.shape[:2])


# as mmseg has them
_TRAIN = dict(img_path='img_dir/train', seg_map_path='ann_dir/train')
_VAL = dict(img_path='img_dir/val', seg_map_path='ann_dir/val')


@DATASETS.register_module()
class LabelledMaps(_Labelled):
    """Read images with label maps, in folders as mmseg has them.

    Args:
        data_root (str): What the folders are relative to.
        num_classes (int): K; labels are 0 to K-1.
        train (dict): Folders ``img_path`` and ``seg_map_path`` of the images
            that classifiers are made from. Defaults to mmseg's names.
        test (dict, optional): Of those that they are measured on; None is every
            fourth of ``train``. Defaults to mmseg's names for ``val``.
        img_suffix (str): Of the images. Defaults to '.jpg'.
        seg_map_suffix (str): Of the maps, which are images of one channel or
            with a palette. Defaults to '.png'.
        ignore_index (int): The label of pixels that do not count. Defaults to
            255.
        reduce_zero_label (bool): Label 0 does not count, and label n is class
            n-1, as in ADE20K. Defaults to False.

    Raises:
        DataError: When a folder is missing, is empty, or an image has no map.
    """

    def __init__(
        self,
        data_root: str,
        num_classes: int,
        train: dict = _TRAIN,
        test: Optional[dict] = _VAL,
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        ignore_index: int = 255,
        reduce_zero_label: bool = False,
    ) -> None:
        check_counts(num_classes=num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self.suffixes = img_suffix, seg_map_suffix
        self._set(self._find(data_root, train), test and self._find(data_root, test))

    def _find(self, data_root: str, folders: dict) -> List[LabelledImage]:
        if not isinstance(folders, dict) or set(folders) != {'img_path', 'seg_map_path'}:
            raise InputError(
                'train and test of LabelledMaps are dict(img_path=folder, seg_map_path=folder), '
                f'got {folders!r}'
            )
        images, maps = (osp.join(data_root, folders[k]) for k in ('img_path', 'seg_map_path'))
        for folder in (images, maps):
            if not osp.isdir(folder):
                raise DataError(f'LabelledMaps: there is no folder {folder}')
        suffix, map_suffix = self.suffixes
        names = [name[: -len(suffix)] for name in scandir(images, suffix, recursive=True)]
        if not names:
            raise DataError(f'LabelledMaps: no image {images}/*{suffix} (img_suffix)')
        found = [
            LabelledImage(osp.join(images, n + suffix), osp.join(maps, n + map_suffix))
            for n in names
        ]
        missing = sorted(image for image in found if not osp.isfile(image.label))
        if missing:
            raise DataError(
                f'LabelledMaps: {len(missing)} of {len(found)} images have no label map; for '
                f'{missing[0].path} it would be {missing[0].label}'
            )
        return found

    def _label(self, image: LabelledImage, shape: Tuple[int, int]) -> Tensor:
        """Return H×W labels, int64, -1 where pixels do not count."""
        try:
            with Image.open(image.label) as file:
                labels = np.asarray(file).astype(np.int64)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f'cannot read label map {image.label}: {error}') from None
        if labels.shape != shape:
            raise DataError(
                f'label map {image.label} is {"×".join(map(str, labels.shape))}, its image '
                f'{"×".join(map(str, shape))}; it needs a class number for each pixel'
            )
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == self.ignore_index), -1, labels - 1)
        else:
            labels = np.where(labels == self.ignore_index, -1, labels)
        wrong = labels[(labels < -1) | (labels >= self.num_classes)]
        if len(wrong):
            raise DataError(
                f'label map {image.label} has the class {wrong[0]}; allowed are 0 to '
                f'{self.num_classes - 1} (num_classes) and ignore_index, {self.ignore_index}'
            )
        return torch.from_numpy(labels)

    def labelled_features(self, features: Tensor, labels: Tensor) -> Labelled:
        """Return the labelled locations of a map.

        A location has the class of most of its labelled pixels; where less than
        half of its pixels are labelled it has none.

        Args:
            features (Tensor): C×h×w.
            labels (Tensor): H×W.

        Returns:
            Tuple[Tensor, Tensor]: M×C, and the classes, M.
        """
        (height, width), (h, w), end = labels.shape, features.shape[1:], self.num_classes + 1
        rows, columns = torch.arange(height) * h // height, torch.arange(width) * w // width
        # pixels of each location and class, the last of which is void
        pairs = (rows[:, None] * w + columns) * end + labels % end
        counts = torch.bincount(pairs.flatten(), minlength=h * w * end).reshape(h * w, end)
        labelled = counts[:, :-1].sum(1)
        valid = (labelled > 0) & (labelled >= counts[:, -1])
        return features.flatten(1).t()[valid.to(features.device)], counts[valid, :-1].argmax(1)

    def confusion(self, classifier: Classifier, features: Tensor, labels: Tensor) -> Tensor:
        """Return the confusion of the pixels that count: scores of locations, bilinearly between.

        Args:
            classifier (Classifier): M×C to M×K.
            features (Tensor): C×h×w.
            labels (Tensor): H×W.

        Returns:
            Tensor: K×K, int64.
        """
        scores = classifier(features.flatten(1).t()).t().unflatten(1, features.shape[1:])
        scores = interpolate(scores[None].float(), labels.shape, mode='bilinear')
        counts = labels >= 0
        return count_pairs(labels[counts], scores[0].argmax(0).cpu()[counts], self.num_classes)

    @staticmethod
    def metrics(confusion: Tensor) -> Dict[str, float]:
        """Return, in per cent, ``mIoU``, the mean over the classes that occur, and ``aAcc``, the
        share of right pixels."""
        right, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
        occurs = true > 0
        iou = right[occurs] / (true + predicted - right)[occurs]
        return dict(
            mIoU=100 * float(iou.double().mean()),
            aAcc=100 * float(right.sum() / true.sum()),
        )


@DATASETS.register_module()
class LabelledBoxes(_Labelled):
    """Read images with boxes, as Pascal VOC or COCO has them: patches to classify.

    The features of a patch are the mean of the map inside the box (RoIAlign,
    4×4 samples). To the K-1 classes comes background, the last: as many boxes
    as an image has, of the same sizes, at random places where they overlap
    with none of them by an IoU of 0.3 or more; fewer where there is no such
    place. What is random follows from the name of the file.

    Args:
        data_root (str): What the rest is relative to.
        train (str): A ``.txt`` with the names of images, as in
            ``ImageSets/Main``, or a COCO ``.json``. Defaults to
            'ImageSets/Main/train.txt'.
        test (str, optional): As well; None is every fourth image of ``train``.
            Defaults to 'ImageSets/Main/val.txt'.
        img_path (str): Folder of the images. Defaults to 'JPEGImages'.
        ann_path (str): Folder of the ``.xml`` of a ``.txt``. Defaults to
            'Annotations'.
        img_suffix (str): Of the images of a ``.txt``. Defaults to '.jpg'.
        classes (Sequence[str], optional): Names of those to tell apart; the
            others' boxes are an error. Defaults to None, all that are in
            ``train`` or ``test``.

    Raises:
        DataError: When a file or folder is missing or cannot be read, or no
            image has a box.
    """

    def __init__(
        self,
        data_root: str,
        train: str = 'ImageSets/Main/train.txt',
        test: Optional[str] = 'ImageSets/Main/val.txt',
        img_path: str = 'JPEGImages',
        ann_path: str = 'Annotations',
        img_suffix: str = '.jpg',
        classes: Optional[Sequence[str]] = None,
    ) -> None:
        self.folders = [osp.join(data_root, folder) for folder in (img_path, ann_path)]
        self.img_suffix = img_suffix
        splits = [s and self._find(osp.join(data_root, s)) for s in (train, test)]
        names = {name for split in splits if split for i in split for name, _ in i.label}
        self.classes = sorted(names) if classes is None else list(classes)
        for image in (image for split in splits if split for image in split):
            for name, _ in image.label:
                if name not in self.classes:
                    raise DataError(
                        f'{image.path} has a box of {name}; classes are {", ".join(self.classes)}'
                    )
        self.num_classes = len(self.classes) + 1
        self._set(*splits)

    def _find(self, path: str) -> List[LabelledImage]:
        if not osp.isfile(path):
            raise DataError(f'LabelledBoxes: there is no file {path}')
        if not osp.isdir(self.folders[0]):
            raise DataError(f'LabelledBoxes: there is no folder {self.folders[0]} (img_path)')
        try:
            found = self._coco(path) if path.endswith('.json') else self._voc(path)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f'{path} is no COCO json with images and boxes: {error!r}') from None
        # of no use: whether background may be taken from them is not known
        found = [image for image in found if image.label]
        if not found:
            raise DataError(f'LabelledBoxes: no image of {path} has a box')
        return found

    def _voc(self, path: str) -> List[LabelledImage]:
        with open(path, encoding='utf-8') as file:
            names = [line.split()[0] for line in file if line.strip()]
        found = []
        for name in names:
            annotation = osp.join(self.folders[1], name + '.xml')
            if not osp.isfile(annotation):
                raise DataError(f'{name} of {path} has no annotation: no file {annotation}')
            boxes = []
            try:
                for thing in ElementTree.parse(annotation).getroot().iter('object'):
                    sides = [
                        float(thing.find(f'bndbox/{side}').text)
                        for side in ('xmin', 'ymin', 'xmax', 'ymax')
                    ]
                    # from 1, both ends included
                    box = (sides[0] - 1, sides[1] - 1, sides[2], sides[3])
                    boxes.append((thing.find('name').text.strip(), box))
            except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
                raise DataError(f'cannot read annotation {annotation}: {error}') from None
            found.append(self._image(name + self.img_suffix, boxes))
        return found

    def _coco(self, path: str) -> List[LabelledImage]:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        names = {category['id']: category['name'] for category in content['categories']}
        boxes = defaultdict(list)
        for thing in content['annotations']:
            if not thing.get('iscrowd'):
                x, y, width, height = thing['bbox']
                box = (x, y, x + width, y + height)
                boxes[thing['image_id']].append((names[thing['category_id']], box))
        return [self._image(i['file_name'], boxes[i['id']]) for i in content['images']]

    def _image(self, name: str, boxes: list) -> LabelledImage:
        large = [(kind, box) for kind, box in boxes if min(box[2] - box[0], box[3] - box[1]) >= 1]
        return LabelledImage(osp.join(self.folders[0], name), large)

    def _label(self, image: LabelledImage, shape: Tuple[int, int]) -> Labelled:
        """Return boxes M×4 (x0, y0, x1, y1) in [0, 1] of the image, and their classes."""
        height, width = shape
        boxes = torch.tensor([box for _, box in image.label], dtype=torch.float32)
        boxes = boxes / torch.tensor([width, height, width, height])
        if boxes.min() < -0.1 or boxes.max() > 1.1:
            raise DataError(
                f'{image.path}, of {width}×{height} pixels, has a box outside of it: are the '
                'annotations those of another size?'
            )
        boxes = boxes.clamp(0, 1)
        background = _background(boxes, crc32(osp.basename(image.path).encode()))
        kinds = [self.classes.index(name) for name, _ in image.label]
        kinds += [self.num_classes - 1] * len(background)
        return torch.cat([boxes, background]), torch.tensor(kinds)

    def labelled_features(self, features: Tensor, labels: Labelled) -> Labelled:
        """Return the features of patches.

        Args:
            features (Tensor): C×h×w.
            labels (Tuple[Tensor, Tensor]): Boxes M×4 in [0, 1], and classes M.

        Returns:
            Tuple[Tensor, Tensor]: M×C, and the classes, M.
        """
        boxes, kinds = labels
        height, width = features.shape[1:]
        boxes = boxes.to(features) * boxes.new_tensor([width, height, width, height]).to(features)
        return roi_align(features[None], [boxes], 1, sampling_ratio=4, aligned=True)[
            ..., 0, 0
        ], kinds

    def confusion(self, classifier: Classifier, features: Tensor, labels: Labelled) -> Tensor:
        """Return the confusion of the patches of an image, see :meth:`LabelledMaps.confusion`."""
        patches, kinds = self.labelled_features(features, labels)
        return count_pairs(kinds, classifier(patches).argmax(1).cpu(), self.num_classes)

    @staticmethod
    def metrics(confusion: Tensor) -> Dict[str, float]:
        """Return, in per cent, ``accuracy`` and ``balanced_accuracy``, the mean over the classes
        that occur; background is one of them."""
        right, true = confusion.diag(), confusion.sum(1)
        recall = (right / true)[true > 0].double()
        return dict(
            accuracy=100 * float(right.sum() / true.sum()),
            balanced_accuracy=100 * float(recall.mean()),
        )


def _background(boxes: Tensor, seed: int) -> Tensor:
    """Return boxes of the sizes of others, at random places where they meet little of them."""
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(rng.random((len(boxes), 20, 2))).float()  # of each 20 to choose from
    sizes = (boxes[:, 2:] - boxes[:, :2])[:, None]
    starts = places * (1 - sizes)
    tried = torch.cat([starts, starts + sizes], dim=2)
    free = box_iou(tried.flatten(0, 1), boxes).amax(1).unflatten(0, (-1, 20)) < 0.3
    first = free.int().argmax(1)
    return tried[torch.arange(len(boxes)), first][free.any(1)]


def count_pairs(true: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count how often each pair of classes occurs.

    Args:
        true (Tensor): Integers of any shape, in [0, K).
        predicted (Tensor): As many.
        num_classes (int): K.

    Returns:
        Tensor: K×K, int64; rows are true.
    """
    pairs = true.flatten() * num_classes + predicted.flatten()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
