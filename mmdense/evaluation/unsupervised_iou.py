# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from mmdense.registry import METRICS
from mmdense.utils.errors import DataError, InputError


@METRICS.register_module()
class UnsupervisedIoU(BaseMetric):
    """Measure the IoU of groups that have no names: they are matched to the classes first.

    The usual protocol (IIC, https://arxiv.org/abs/1807.06653; PiCIE,
    https://arxiv.org/abs/2103.17070): over the complete data set, the one-to-one
    matching of groups and classes that gets most pixels right, found by the
    Hungarian method. There is one matching for all images.

    Pixels of a group that is matched to no class are errors: they miss their
    class. With more groups than classes most of them are such, so the numbers
    are comparable only at equal numbers of groups; ``many_to_one`` measures
    how pure groups are instead, and grows with their number.

    Samples have ``pred_sem_seg`` and ``gt_sem_seg``, whose ``data`` are 1×H×W
    integers, and the data set's ``metainfo`` has ``classes``, as in mmseg.

    Results, in per cent: ``mIoU``, the mean over the classes that occur, and
    ``aAcc``, the share of right pixels; with ``count_absent`` also ``mAcc``, the mean share of
    right pixels over the classes that occur.

    Args:
        ignore_index (int): Pixels of this true label do not count. Defaults
            to 255.
        many_to_one (bool): Give every group the class that most of its pixels
            have; several may share one. Defaults to False.
        count_absent (bool): Whether a class that never occurs, but whose group does, counts as
            IoU 0 in ``mIoU``, as in PiCIE's and DenseSiam's code. The two ways agree where all
            classes occur, as on COCO-Stuff 27. Defaults to False.
        collect_device (str): 'cpu' or 'gpu', to gather results of several
            processes. Defaults to 'cpu'.
        prefix (str, optional): Of the names of the results. Defaults to
            'unsupervised'.
    """

    default_prefix = 'unsupervised'

    def __init__(
        self,
        ignore_index: int = 255,
        many_to_one: bool = False,
        count_absent: bool = False,
        collect_device: str = 'cpu',
        prefix: Optional[str] = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if type(ignore_index) is not int:
            raise InputError(f'ignore_index must be a whole number, got {ignore_index!r}')
        if type(many_to_one) is not bool:
            raise InputError(f'many_to_one must be True or False, got {many_to_one!r}')
        if type(count_absent) is not bool:
            raise InputError(f'count_absent must be True or False, got {count_absent!r}')
        self.ignore_index = ignore_index
        self.count_absent = count_absent
        self.many_to_one = many_to_one

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): With predictions and ground truth.

        Raises:
            DataError: When a sample has none, of different sizes, or labels
                that are neither a class nor ``ignore_index``.
        """
        # One result an image, though batches would do: MMEngine counts them to drop the images
        # that a distributed sampler repeats. Only pairs that occur, for there can be many groups.
        for sample in data_samples:
            group, true = self._labels(sample)
            pairs = torch.stack([group, true])
            pairs, counts = torch.unique(pairs, dim=1, return_counts=True)
            self.results.append((pairs.cpu().numpy(), counts.cpu().numpy()))

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Match the groups, and measure the IoU.

        Args:
            results (list): Of every image: pairs (group, class), 2×M, and how
                many pixels have them, M.

        Returns:
            Dict[str, float]: Results in [0, 100], rounded to two digits.

        Raises:
            DataError: When not one pixel counts.
        """
        pairs = np.concatenate([pairs for pairs, _ in results], axis=1)
        counts = np.concatenate([counts for _, counts in results])
        if counts.sum() == 0:
            raise DataError(f'every pixel has the true label {self.ignore_index}: nothing to count')
        classes = self.dataset_meta['classes']
        matrix = np.zeros((pairs[0].max() + 1, len(classes)), dtype=np.int64)
        np.add.at(matrix, tuple(pairs), counts)

        found, iou = self.measure(matrix)
        how = 'each with its best class' if self.many_to_one else 'one to one with classes'
        per_class = ', '.join(f'{classes[i]} {value:.2f}' for i, value in iou.items())
        MMLogger.get_current_instance().info(
            f'{self.prefix}: {np.count_nonzero(matrix.sum(axis=1))} groups occur, matched '
            f'{how}; IoU: {per_class}'
        )
        return {name: round(value, 2) for name, value in found.items()}

    def measure(self, matrix: np.ndarray) -> Tuple[Dict[str, float], Dict[int, float]]:
        """Match groups to classes, and measure.

        Args:
            matrix (np.ndarray): Numbers of pixels, groups × classes.

        Returns:
            tuple: ``mIoU`` and ``aAcc``, with ``count_absent`` also ``mAcc``; and the IoU of each
            class that counts, by its number. All in per cent, not rounded.
        """
        groups, matched = self._match(matrix)
        number = matrix.shape[1]
        right = np.bincount(matched, matrix[groups, matched], minlength=number)
        predicted = np.bincount(matched, matrix[groups].sum(axis=1), minlength=number)
        true = matrix.sum(axis=0)
        union = true + predicted - right
        counted = np.flatnonzero(union if self.count_absent else true)
        iou = 100 * right[counted] / union[counted]
        found = dict(mIoU=float(iou.mean()), aAcc=float(100 * right.sum() / true.sum()))
        if self.count_absent:
            occurs = true > 0
            found['mAcc'] = float(100 * (right[occurs] / true[occurs]).mean())
        return found, dict(zip(counted.tolist(), iou.tolist()))

    def _match(self, matrix: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the groups that get a class, and that class, from groups×classes pixels."""
        if self.many_to_one:
            return np.arange(len(matrix)), matrix.argmax(axis=1)
        from scipy.optimize import linear_sum_assignment  # here, for runs import this module

        return linear_sum_assignment(matrix, maximize=True)

    def _labels(self, sample: dict) -> Tuple[Tensor, Tensor]:
        """Return the group and the class of the pixels that count, both flat."""
        name = sample.get('img_path', 'a sample')
        for key in ('pred_sem_seg', 'gt_sem_seg'):
            if key not in sample:
                raise DataError(f'UnsupervisedIoU: {name} has no {key}')
        group = sample['pred_sem_seg']['data'].squeeze()
        true = sample['gt_sem_seg']['data'].squeeze().to(group.device)
        if group.shape != true.shape:
            raise DataError(
                f'UnsupervisedIoU: the prediction for {name} is {tuple(group.shape)}, the ground '
                f'truth {tuple(true.shape)}'
            )
        if group.is_floating_point() or true.is_floating_point():
            raise DataError(
                f'UnsupervisedIoU: labels must be whole numbers, of {name} they are not'
            )
        counts = true != self.ignore_index
        group, true = group[counts].long(), true[counts].long()
        end = len(self.dataset_meta['classes'])
        wrong = true[(true < 0) | (true >= end)]
        if len(wrong):
            raise DataError(
                f'UnsupervisedIoU: {name} has the true label {int(wrong[0])}; allowed are 0 to '
                f'{end - 1} and ignore_index, {self.ignore_index}'
            )
        if (group < 0).any():
            raise DataError(f'UnsupervisedIoU: {name} has the group {int(group.min())}, below 0')
        return group, true
