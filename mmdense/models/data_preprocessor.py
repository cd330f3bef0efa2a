# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
from mmpretrain.models import SelfSupDataPreprocessor as _SelfSupDataPreprocessor

from mmdense.datasets.transforms.batched import apply_batch
from mmdense.registry import MODELS


@MODELS.register_module()
class SelfSupDataPreprocessor(_SelfSupDataPreprocessor):
    """Finish the views on the device, then run mmpretrain's ``SelfSupDataPreprocessor``
    that :class:`~mmdense.datasets.MultiView` with ``device_augment`` has left
    to the device. The host does not wait for the copy of the views.

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
        samples = data.get('data_samples')
        if samples and 'deferred' in samples[0]:
            views = self.cast_data(data['inputs'])
            # by view instead of by image
            operations = zip(*(sample.pop('deferred') for sample in samples))
            finished = [apply_batch(view, todo) for view, todo in zip(views, operations)]
            data = dict(data, inputs=finished)
        return super().forward(data, training)
