# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import List, Optional, Union

from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from mmdense.models.utils import best_groups
from mmdense.utils.errors import InputError


class GroupsPixels:
    """Segment images without labels, by the groups that an algorithm has learned.

    A mixin, before :class:`SelfSupervisor`, of algorithms that give a score to each location and
    group. :class:`mmdense.evaluation.UnsupervisedIoU` matches the groups to classes, and
    `mmdense show` draws them.

    Attributes:
        group_name (str): Word for a group in messages, with its plural.
        group_tensor (str): Name of a tensor that a training checkpoint has if and only if the
            algorithm was built with groups.
        group_part (str): Path of the sub-module that :meth:`group_scores` needs; '' is all.
    """

    group_name = ('group', 'groups')
    group_tensor: str
    group_part = ''

    @property
    def num_groups(self) -> int:
        """Return P, the number of groups."""
        raise NotImplementedError

    def group_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores N×P×h×w of N×3×H×W images, without gradients."""
        raise NotImplementedError

    def forward(
        self,
        inputs: Union[Tensor, List[Tensor]],
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ):
        """Run :class:`SelfSupervisor`'s ``forward()``; with ``mode='predict'`` run
        :meth:`predict`."""
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return super().forward(inputs, data_samples, mode)

    def predict(self, inputs: Tensor, data_samples: Optional[list] = None) -> list:
        """Segment images without labels: return the group of every pixel.

        Args:
            inputs (Tensor): N×3×H×W, one view of every image, normalised as in
                training. In MMEngine's loops the data loader must stack them
                (``collate_fn=dict(type='mmdense.default_collate')``): the data
                preprocessor takes a list for several views.
            data_samples (List[BaseDataElement], optional): N, of mmseg for
                instance. New ones where there are none.

        Returns:
            List[BaseDataElement]: The same N samples with ``pred_sem_seg``,
            whose ``data`` is 1×H×W int64 in [0, P): at the size of
            ``gt_sem_seg`` where the sample has it, else of the input.

        Raises:
            InputError: When ``inputs`` are not N×3×H×W, or not N samples.
        """
        if not isinstance(inputs, Tensor) or inputs.dim() != 4:
            raise InputError(
                f'{type(self).__name__} predicts on a batch of images N×3×H×W of one size, not on '
                'views or a list; give the data loader '
                "collate_fn=dict(type='mmdense.default_collate')"
            )
        if data_samples is None:
            data_samples = [BaseDataElement() for _ in inputs]
        if len(data_samples) != len(inputs):
            raise InputError(f'{len(inputs)} images but {len(data_samples)} data samples')
        scores = self.group_scores(inputs)
        for score, sample in zip(scores, data_samples):
            true = sample.gt_sem_seg.data if 'gt_sem_seg' in sample else inputs
            labels, _ = best_groups(score[None], true.shape[-2:])
            sample.set_field(PixelData(data=labels), 'pred_sem_seg')
        return data_samples
