# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Views of a detector's pretraining: the complete image, and a patch of it."""

from typing import Sequence, Tuple, Union

import numpy as np
from mmcv.transforms import BaseTransform

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts
from mmdense.utils.errors import InputError

from .views import resize_pixels


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):
    """Resize an image to a random length of its shorter side; the aspect ratio stays.

    As DETR's and UP-DETR's code: the longer side is rounded down, and where it were longer than
    ``max_size`` the shorter side is shorter instead. Images of a batch have different sizes:
    :func:`~mmdense.datasets.pad_collate` pads them.

    **Required Keys:** ``img`` (np.ndarray): H×W×C

    **Modified Keys:** ``img``, ``img_shape``

    Args:
        scale (int | Sequence[int]): Lengths of the shorter side in pixels; each is as likely.
        max_size (int): Largest length of the longer side in pixels. Defaults to 600.
    """

    def __init__(self, scale: Union[int, Sequence[int]], max_size: int = 600) -> None:
        self.scale = (scale,) if isinstance(scale, int) else tuple(scale)
        if not self.scale:
            raise InputError('ResizeShortSide: scale has no length')
        for one in self.scale:
            check_counts(scale=one)
        check_counts(max_size=max_size)
        self.max_size = max_size

    def transform(self, results: dict) -> dict:
        """Resize ``img``."""
        short = self.scale[np.random.randint(len(self.scale))]
        shape = self.choose_shape(*results['img'].shape[:2], short)
        results['img'] = resize_pixels(results['img'], shape)
        results['img_shape'] = shape
        return results

    def choose_shape(self, height: int, width: int, short: int) -> Tuple[int, int]:
        """Return the new height and width of an image, for a length of the shorter side."""
        low, high = sorted((height, width))
        if high / low * short > self.max_size:
            short = max(1, round(self.max_size * low / high))
        long = max(1, int(short * high / low))
        return (long, short) if height > width else (short, long)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, max_size={self.max_size})'


@TRANSFORMS.register_module()
class CropProposal(BaseTransform):
    """Cut a proposal out of an image and resize it to a square; the aspect ratio does not stay.

    In a pipeline of :class:`MultiView` that makes as many views as there are proposals: view
    ``first_view`` shows the first proposal, the next view the second one.

    **Required Keys:** ``img`` (np.ndarray): H×W×C, the image as loaded; ``proposals``, R×4;
    ``earlier_boxes`` of :class:`MultiView`

    **Modified Keys:** ``img``, ``img_shape``

    **Added Keys:** ``view_box`` (tuple[float, float, float, float])

    Args:
        scale (int): Side of the patch in pixels. Defaults to 128.
        first_view (int): Number of views that other pipelines made before. Defaults to 1, the
            image.

    Raises:
        InputError: At an image without proposals, or with fewer than there are views.
    """

    keeps_view_box = True

    def __init__(self, scale: int = 128, first_view: int = 1) -> None:
        check_counts(scale=scale)
        self.scale = scale
        self.first_view = first_view

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by the patch, and add ``view_box``."""
        boxes = results.get('proposals', ())
        number = len(results.get('earlier_boxes', ())) - self.first_view
        if not 0 <= number < len(boxes):
            raise InputError(
                f'CropProposal: an image has {len(boxes)} proposals, the view asks for number '
                f'{number + 1}: put LoadProposals before MultiView, with max_num as many as '
                'num_views'
            )
        height, width = results['img'].shape[:2]
        x0, y0, x1, y1 = np.rint(boxes[number] * [width, height, width, height]).astype(int)
        cut = results['img'][y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        results['img'] = resize_pixels(cut, (self.scale, self.scale))
        results['img_shape'] = (self.scale, self.scale)
        results['view_box'] = tuple(map(float, boxes[number]))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, first_view={self.first_view})'
