# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import io
from contextlib import redirect_stdout
from typing import Sequence

import cv2
import numpy as np
import torch

from mmdense.registry import TRANSFORMS

from .proposals import KEYS
from .views import DeferredView

with redirect_stdout(io.StringIO()):  # it prints that an optional package is missing
    from mmpretrain.datasets.transforms import PackInputs as _PackInputs


@TRANSFORMS.register_module()
class PackInputs(_PackInputs):
    """Pack as mmpretrain's ``PackInputs``, with proposals and the operations left to the device.

    **Required Keys:** ``img`` (np.ndarray | list[np.ndarray | DeferredView]); optionally
    ``proposals``, ``proposal_ids`` and ``proposal_scores`` of :class:`LoadProposals`

    **Added Keys:** ``inputs`` (Tensor | list[Tensor]): 3×H×W uint8, BGR;
    ``data_samples`` (DataSample): with ``meta_keys``; with proposals as tensors;
    where views are not finished with ``deferred``, a list of operations for each.

    Args:
        meta_keys (Sequence[str]): Defaults to ('img_path', 'view_boxes').
        **kwargs: Arguments of mmpretrain's class.
    """

    def __init__(self, meta_keys: Sequence[str] = ('img_path', 'view_boxes'), **kwargs) -> None:
        super().__init__(meta_keys=meta_keys, **kwargs)

    @staticmethod
    def format_input(input_):
        """Convert H×W×C arrays to C×H×W tensors, as mmpretrain's, in a fourth of its time."""
        if isinstance(input_, list):
            return [PackInputs.format_input(item) for item in input_]
        if not (isinstance(input_, np.ndarray) and input_.ndim == 3 and input_.dtype == np.uint8):
            return _PackInputs.format_input(input_)
        height, width, channels = input_.shape
        planes = np.empty((channels, height, width), np.uint8)
        cv2.split(input_, list(planes))
        return torch.from_numpy(planes)

    def transform(self, results: dict) -> dict:
        """Pack ``results`` into ``inputs`` and ``data_samples``."""
        views = results[self.input_key]
        deferred = None
        if isinstance(views, list) and any(isinstance(view, DeferredView) for view in views):
            images, deferred = zip(*views)
            results = dict(results, **{self.input_key: list(images)})
        packed = super().transform(results)
        for key in KEYS:
            if key in results:
                packed['data_samples'].set_field(torch.from_numpy(results[key]), key)
        if deferred is not None:
            packed['data_samples'].set_metainfo(dict(deferred=list(deferred)))
        return packed
