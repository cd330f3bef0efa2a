# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmpretrain.models import SelfSupDataPreprocessor as _SelfSupDataPreprocessor
from torch import Tensor

from mmdense.datasets.transforms.batched import apply_batch
from mmdense.registry import MODELS


@MODELS.register_module()
class SelfSupDataPreprocessor(_SelfSupDataPreprocessor):
    """Finish the views that :class:`~mmdense.datasets.MultiView` with ``device_augment`` has left
    to the device, and normalise them as mmpretrain's ``SelfSupDataPreprocessor`` does. The host
    does not wait for the device.

    Args:
        non_blocking (bool): Whether copies from pinned memory are
            asynchronous. Defaults to True.
        **kwargs: Of mmpretrain's.
    """

    def __init__(self, *args, non_blocking: bool = True, **kwargs) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Move, finish and normalise a batch.

        Args:
            data (dict): ``inputs``, a list of views N×3×H×W uint8, BGR, or one
                such tensor; ``data_samples``, N.
            training (bool): Not used.

        Returns:
            dict: ``inputs``, float32 and normalised; ``data_samples``.
        """
        data = self.cast_data(data)
        views, samples = data['inputs'], data.get('data_samples')
        if samples and 'deferred' in samples[0]:
            # by view instead of by image
            operations = zip(*(sample.pop('deferred') for sample in samples))
            views = [apply_batch(view, todo) for view, todo in zip(views, operations)]
        single = isinstance(views, Tensor)
        finished = [self._normalise(view) for view in ([views] if single else views)]
        return dict(inputs=finished[0] if single else finished, data_samples=samples)

    def _normalise(self, view: Tensor) -> Tensor:
        if self._channel_conversion:
            # not by an index, as mmpretrain's: the host would wait for the copy of it
            view = view.flip(1)
        view = view.float()
        return (view - self.mean) / self.std if self._enable_normalize else view
