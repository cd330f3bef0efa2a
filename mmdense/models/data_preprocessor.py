# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple

import torch
from mmpretrain.models import SelfSupDataPreprocessor as _SelfSupDataPreprocessor
from torch import Tensor

from mmdense.datasets.transforms.batched import apply_batch
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError


@MODELS.register_module()
class SelfSupDataPreprocessor(_SelfSupDataPreprocessor):
    """Finish the views that :class:`~mmdense.datasets.MultiView` with ``device_augment`` has left
    to the device, and normalise them as mmpretrain's ``SelfSupDataPreprocessor`` does. The host
    does not wait for the device.

    Args:
        mean (Sequence[float], optional): Mean of each channel in 0..255, or one for all.
        std (Sequence[float], optional): Standard deviation, likewise.
        non_blocking (bool): Whether copies from pinned memory are
            asynchronous. Defaults to True.
        **kwargs: Of mmpretrain's. ``to_rgb`` is for images of 3 channels; others keep the order of
            their channels.

    Raises:
        InputError: There are not as many of ``std`` as of ``mean``.
    """

    def __init__(
        self,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        non_blocking: bool = True,
        **kwargs,
    ) -> None:
        pixels = [values and torch.tensor(values).view(-1, 1, 1) for values in (mean, std)]
        if len(mean or ()) != len(std or ()):
            raise InputError(f'data_preprocessor has mean={mean} and std={std}: as many of each')
        other = len(mean or ()) not in (0, 1, 3)  # MMEngine takes no such number
        given = {} if other else dict(mean=mean, std=std)
        super().__init__(**given, non_blocking=non_blocking, **kwargs)
        if other:
            self._enable_normalize = True
            for name, values in zip(('mean', 'std'), pixels):
                self.register_buffer(name, values, persistent=False)

    @property
    def channels(self) -> Optional[int]:
        """Return the number of channels that ``mean`` and ``std`` are for, None for any."""
        count = len(self.mean) if self._enable_normalize else 1
        return None if count == 1 else count

    def forward(self, data: dict, training: bool = False) -> dict:
        """Move, finish and normalise a batch.

        Args:
            data (dict): ``inputs``, a list of views N×C×H×W uint8, BGR with 3 channels,
                or one such tensor; ``data_samples``, N.
            training (bool): Not used.

        Returns:
            dict: ``inputs``, float32 and normalised, with 0 where
            :func:`~mmdense.datasets.pad_collate` padded; ``data_samples``.
        """
        data = self.cast_data(data)
        views, samples = data['inputs'], data.get('data_samples')
        if samples and 'deferred' in samples[0]:
            # by view instead of by image
            operations = zip(*(sample.pop('deferred') for sample in samples))
            views = [apply_batch(view, todo) for view, todo in zip(views, operations)]
        single = isinstance(views, Tensor)
        finished = [self._normalise(view) for view in ([views] if single else views)]
        if samples and 'view_shapes' in samples[0]:
            _clear_padding(finished, [sample.view_shapes for sample in samples])
        return dict(inputs=finished[0] if single else finished, data_samples=samples)

    def _normalise(self, view: Tensor) -> Tensor:
        if self._channel_conversion and view.size(1) == 3:
            # not by an index, as mmpretrain's: the host would wait for the copy of it
            view = view.flip(1)
        view = view.float()
        return (view - self.mean) / self.std if self._enable_normalize else view


def _clear_padding(views: Sequence[Tensor], shapes: Sequence[Sequence[Tuple[int, int]]]) -> None:
    """Set the padding of views, each N×C×H×W, to 0 in place; shapes are those of N × V images."""
    for i, view in enumerate(views):
        for image, (height, width) in zip(view, (one[i] for one in shapes)):
            if (height, width) != tuple(image.shape[1:]):
                image[:, height:] = 0
                image[:, :height, width:] = 0
