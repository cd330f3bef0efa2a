# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Views of a detector's pretraining: the image, and a patch of it."""

from typing import Optional, Sequence, Tuple, Union

import numpy as np
from mmcv.transforms import BaseTransform

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts, check_fractions, check_whole
from mmdense.utils.errors import InputError

from .loading import UnreadableImageError
from .views import WHOLE, part_of, resize_pixels, view_inside


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):
    """Resize an image to a random length of its shorter side; the aspect ratio stays.

    As DETR's and UP-DETR's code: the longer side is rounded down, and where it were longer than
    ``max_size`` the shorter side is shorter instead. A view's box stays. Images of a batch have
    different sizes: :func:`~mmdense.datasets.pad_collate` pads them.

    **Required Keys:** ``img`` (np.ndarray): H×W×C

    **Modified Keys:** ``img``, ``img_shape``

    Args:
        scale (int | Sequence[int]): Lengths of the shorter side in pixels; each is as likely.
        max_size (int, optional): Largest length of the longer side in pixels; None for any.
            Defaults to 600.
    """

    def __init__(self, scale: Union[int, Sequence[int]], max_size: Optional[int] = 600) -> None:
        self.scale = (scale,) if isinstance(scale, int) else tuple(scale)
        if not self.scale:
            raise InputError('ResizeShortSide: scale has no length')
        for one in self.scale:
            check_counts(scale=one)
        if max_size is not None:
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
        if self.max_size is not None and high / low * short > self.max_size:
            short = max(1, round(self.max_size * low / high))
        long = max(1, int(short * high / low))
        return (long, short) if height > width else (short, long)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, max_size={self.max_size})'


@TRANSFORMS.register_module()
class RandomSizeCrop(BaseTransform):
    """Cut a region of random size out of an image that is enlarged first, or do neither, as DETR's
    and DETReg's code; and keep the box of the view.

    The shorter side is resized to one of ``scale``, the longer one in proportion; height and width
    of the region are uniform on the whole pixels of ``size_range``, bounded by the image, then the
    place is uniform.

    **Required Keys:** ``img`` (np.ndarray): H×W×C; ``view_box`` (optional); ``proposals`` (with
    ``min_proposals``)

    **Modified Keys:** ``img``, ``img_shape``

    **Added Keys:** ``view_box`` (tuple[float, float, float, float])

    Args:
        scale (int | Sequence[int]): Lengths of the shorter side in pixels. Defaults to
            (400, 500, 600).
        size_range (tuple[int, int]): Least and largest side of the region. Defaults to (384, 600).
        prob (float): Probability that a region is cut. Defaults to 0.5.
        min_proposals (int): Proposals that the view shows at least; the data set takes another
            image otherwise. Defaults to 0.
    """

    keeps_view_box = True

    def __init__(
        self,
        scale: Union[int, Sequence[int]] = (400, 500, 600),
        size_range: Tuple[int, int] = (384, 600),
        prob: float = 0.5,
        min_proposals: int = 0,
    ) -> None:
        self.resize = ResizeShortSide(scale, max_size=None)
        low, high = size_range
        check_counts(size_range=low)
        if high < low:
            raise InputError(f'RandomSizeCrop: size_range must rise, got {size_range!r}')
        check_fractions(prob=prob)
        check_whole(0, min_proposals=min_proposals)
        self.size_range = (low, high)
        self.prob = prob
        self.min_proposals = min_proposals

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by a region of it, with ``view_box``, or by nothing.

        Raises:
            UnreadableImageError: The view shows too few proposals.
        """
        outer = results.get('view_box', WHOLE)
        results['view_box'] = outer
        if np.random.rand() < self.prob:
            image = self.resize.transform(results)['img']
            height, width = image.shape[:2]
            # + 1: NumPy leaves the upper end out
            h, w = (
                np.random.randint(min(self.size_range[0], n), min(self.size_range[1], n) + 1)
                for n in (height, width)
            )
            top, left = (
                np.random.randint(0, n - side + 1) for n, side in ((height, h), (width, w))
            )
            results['view_box'] = view_inside(outer, part_of(image, top, left, h, w))
            results['img'] = np.ascontiguousarray(image[top : top + h, left : left + w])
            results['img_shape'] = (h, w)
        if self.min_proposals:
            self._check(results)
        return results

    def _check(self, results: dict) -> None:
        boxes, view = results['proposals'], results['view_box']
        sides = [
            np.clip(boxes[:, i + 2], *sorted(view[i::2]))
            - np.clip(boxes[:, i], *sorted(view[i::2]))
            for i in (0, 1)
        ]
        shown = int(((sides[0] > 0) & (sides[1] > 0)).sum())
        if shown < self.min_proposals:
            raise UnreadableImageError(
                results.get('img_path', ''),
                f'its view shows {shown} proposals, at least {self.min_proposals} are needed',
            )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.resize.scale}, size_range={self.size_range}, '
            f'prob={self.prob}, min_proposals={self.min_proposals})'
        )


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
        fewer (bool): Whether an image may have fewer proposals than there are views, which are
            black then. Defaults to False.

    Raises:
        InputError: At an image without proposals, or with fewer than there are views.
    """

    keeps_view_box = True
    keeps_pixels = True  # of the image

    def __init__(self, scale: int = 128, first_view: int = 1, fewer: bool = False) -> None:
        check_counts(scale=scale)
        self.scale = scale
        self.first_view = first_view
        self.fewer = fewer

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by the patch, and add ``view_box``."""
        boxes = results.get('proposals', ())
        number = len(results.get('earlier_boxes', ())) - self.first_view
        results['img_shape'] = (self.scale, self.scale)
        if self.fewer and len(boxes) <= number:
            channels = results['img'].shape[2:]
            results['img'] = np.zeros((self.scale, self.scale, *channels), results['img'].dtype)
            return results
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
        results['view_box'] = tuple(map(float, boxes[number]))
        return results

    def __repr__(self) -> str:
        fewer = ', fewer=True' if self.fewer else ''
        return f'{type(self).__name__}(scale={self.scale}, first_view={self.first_view}{fewer})'
