# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Views of an image that know the part of the image that they show.

A view is a signed box ``(x0, y0, x1, y1)`` in the image as loaded, in 0..1 of
its width and height: its left edge shows x0 and its right edge x1, so that
x0 > x1 where it is mirrored; likewise y. The box is that of the pixels' outer
corners: the crop of w×h pixels at (left, top) of a W×H image is
``(left/W, top/H, (left+w)/W, (top+h)/H)``.

``results['view_box']`` is the box of the current ``img``, the complete image if
absent. Every transform here composes with it, so their order and number do not
matter. Transforms that keep the frame (resizing, colors, blur) need no change.
"""

import copy
import io
import math
import re
from contextlib import redirect_stdout
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms import RandomFlip as _RandomFlip

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_counts, check_fractions
from mmdense.utils.errors import InputError

from .patches import JigsawPatches
from .photometric import Operation, Photometric

with redirect_stdout(io.StringIO()):  # it prints that an optional package is missing
    from mmpretrain.datasets.transforms import MultiView as _MultiView
    from mmpretrain.datasets.transforms import RandomResizedCrop as _RandomResizedCrop

Box = Tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_FLIPPED: Dict[Optional[str], Box] = {
    None: WHOLE,
    'horizontal': (1.0, 0.0, 0.0, 1.0),
    'vertical': (0.0, 1.0, 1.0, 0.0),
    'diagonal': (1.0, 1.0, 0.0, 0.0),
}

_FLIPPED_TOO = frozenset(['gt_bboxes', 'gt_keypoints', 'gt_seg_map'])  # by mmcv
_CV2_FLIP = dict(horizontal=1, vertical=0, diagonal=-1)

# Names of transforms that move pixels, in OpenMMLab's packages, torchvision and albumentations.
_MOVES = re.compile(
    'Crop|Flip|Rotat|Shear|Translat|Affine|Perspective|Elastic|(Grid|Optical)Distortion|Mosaic|'
    'Pad$|Transpose|Zoom|RandomShift|Expand|Jigsaw'
)


# What interpolate(antialias=True) calls after many checks, which take a tenth of the time.
_RESIZE = dict(
    bilinear=torch._C._nn._upsample_bilinear2d_aa, bicubic=torch._C._nn._upsample_bicubic2d_aa
)


def resize_pixels(
    img: np.ndarray, scale: Sequence[int], interpolation: str = 'bilinear'
) -> np.ndarray:
    """Resize an image as Pillow does, which filters where it shrinks.

    Args:
        img (np.ndarray): H×W×C uint8.
        scale (Sequence[int]): New height and width in pixels.
        interpolation (str): 'bilinear' or 'bicubic'. Defaults to 'bilinear'.
    """
    # In few calls, and not by img[None], whose strides hide that it is channels_last.
    planes = np.ascontiguousarray(img).reshape(1, *img.shape).transpose(0, 3, 1, 2)
    view = _RESIZE[interpolation](torch.from_numpy(planes), scale, False)
    return np.ascontiguousarray(view.numpy()[0].transpose(1, 2, 0))


_rand_crop_params = vars(_RandomResizedCrop)['rand_crop_params'].func

# types that no transform can change in place
_CONSTANT = (str, int, float, tuple, type(None))

_AUTO = re.compile('AutoAugment|RandAugment|TrivialAugment|AugMix')


@TRANSFORMS.register_module()
class RandomResizedCrop(_RandomResizedCrop):
    """Crop and resize as torchvision's ``RandomResizedCrop``, and keep the box of the view.

    With ``min_overlap`` a view after the first of a :class:`MultiView` is drawn
    as SlotCon (NeurIPS 2022) does: up to ``max_attempts`` times a size and a
    place, until the crop's intersection with the first view is ``min_overlap``
    of the requested area (before it is rounded to pixels; a size that does not
    fit costs an attempt), then any crop.

    With ``min_visible`` a view is drawn again, up to ``max_attempts`` times in all, until it shows
    more than this share of the area of at least one proposal, as in CCOP
    (https://arxiv.org/abs/2111.13651); any crop of an image without a proposal will do.

    Pixels are those of Pillow's resize, which filters when it shrinks, as in the
    papers' code; PyTorch computes them, in a tenth of Pillow's time.

    **Required Keys:** ``img``, ``view_box`` (optional), ``earlier_boxes``
    (optional, from :class:`MultiView`), ``proposals`` (with ``min_visible``)

    **Modified Keys:** ``img``, ``img_shape``

    **Added Keys:** ``view_box`` (tuple[float, float, float, float])

    Args:
        *args: Arguments of mmpretrain's class.
        min_overlap (float): Least overlap, in 0..1; SlotCon's is 0.01. Defaults to 0,
            any crop.
        min_visible (float): Least visible share of a proposal, in 0..1; CCOP's is 0.6. Defaults to
            0, any crop.
        backend (str): 'torch', as above, for 'bilinear' and 'bicubic'
            interpolation; or mmcv's 'pillow' or 'cv2'. Defaults to 'torch'.
        **kwargs: Arguments of mmpretrain's class.

    Raises:
        InputError: ``min_overlap`` or ``min_visible`` is not a number in 0..1, or the backend
            lacks the interpolation.
    """

    keeps_view_box = True
    keeps_pixels = True  # of the image

    def __init__(
        self,
        *args,
        min_overlap: float = 0.0,
        min_visible: float = 0.0,
        backend: str = 'torch',
        **kwargs,
    ) -> None:
        super().__init__(*args, backend=backend, **kwargs)
        check_fractions(min_overlap=min_overlap, min_visible=min_visible)
        if backend == 'torch' and self.interpolation not in ('bilinear', 'bicubic'):
            raise InputError(
                f"RandomResizedCrop: interpolation={self.interpolation!r} needs backend='pillow' "
                "or 'cv2'; 'torch' has 'bilinear' and 'bicubic'"
            )
        self.min_overlap = min_overlap
        self.min_visible = min_visible

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img`` and add ``view_box``."""
        img, outer = results['img'], results.get('view_box', WHOLE)
        earlier = results.get('earlier_boxes', ())
        if self.min_overlap and len(earlier):
            top, left, h, w = self._place_near(img, outer, earlier[0])
        elif self.min_visible:
            top, left, h, w = self._place_on_proposals(img, outer, results)
        else:
            top, left, h, w = self.rand_crop_params(img)
        results['view_box'] = view_inside(outer, part_of(img, top, left, h, w))
        results['img'] = self._resize(img[top : top + h, left : left + w])
        results['img_shape'] = results['img'].shape[:2]
        return results

    def rand_crop_params(self, img: np.ndarray) -> Tuple[int, int, int, int]:
        """Draw a crop as mmpretrain's class does, without mmcv's cache of draws, which is slow.

        Args:
            img (np.ndarray): H×W×C.

        Returns:
            tuple[int, int, int, int]: Offsets from the top and from the left, height, width.
        """
        return _rand_crop_params(self, img)

    def _resize(self, img: np.ndarray) -> np.ndarray:
        if self.backend == 'torch':
            return resize_pixels(img, self.scale, self.interpolation)
        return mmcv.imresize(
            img, self.scale[::-1], interpolation=self.interpolation, backend=self.backend
        )

    def _place_near(self, img: np.ndarray, outer: Box, first: Box) -> Tuple[int, int, int, int]:
        """Draw (top, left, h, w), overlapping ``first`` if an attempt does."""
        height, width = img.shape[:2]
        log_ratio = [math.log(ratio) for ratio in self.aspect_ratio_range]
        for _ in range(self.max_attempts):
            share = np.random.uniform(*self.crop_ratio_range)
            aspect = math.exp(np.random.uniform(*log_ratio))
            w = int(round(math.sqrt(share * height * width * aspect)))
            h = int(round(math.sqrt(share * height * width / aspect)))
            if not (0 < w <= width and 0 < h <= height):
                continue
            top = np.random.randint(0, height - h + 1)
            left = np.random.randint(0, width - w + 1)
            overlap = _intersection(view_inside(outer, part_of(img, top, left, h, w)), first)
            if overlap >= self.min_overlap * share * _intersection(outer, outer):
                return top, left, h, w
        return self.rand_crop_params(img)

    def _place_on_proposals(
        self, img: np.ndarray, outer: Box, results: dict
    ) -> Tuple[int, int, int, int]:
        """Draw (top, left, h, w), showing enough of a proposal if an attempt does."""
        if 'proposals' not in results:
            raise InputError(
                'RandomResizedCrop with min_visible needs proposals: put LoadProposals after '
                'LoadImage, before MultiView'
            )
        boxes = results['proposals'].astype(np.float64)
        for _ in range(self.max_attempts):
            top, left, h, w = self.rand_crop_params(img)
            view = view_inside(outer, part_of(img, top, left, h, w))
            shown = [np.clip(boxes[:, i::2], *sorted(view[i::2])) for i in (0, 1)]
            inside, area = (
                np.prod([x[:, 1] - x[:, 0] for x in sides], axis=0)
                for sides in (shown, (boxes[:, 0::2], boxes[:, 1::2]))
            )
            if not len(boxes) or (inside > self.min_visible * area).any():
                break
        return top, left, h, w

    def __repr__(self) -> str:
        visible = f', min_visible={self.min_visible}' if self.min_visible else ''
        return f'{super().__repr__()[:-1]}, min_overlap={self.min_overlap}{visible})'


@TRANSFORMS.register_module()
class RandomFlip(_RandomFlip):
    """Flip as mmcv's ``RandomFlip``, and keep the box of the view.

    **Required Keys:** ``img``, ``view_box`` (optional)

    **Modified Keys:** ``img``

    **Added Keys:** ``flip``, ``flip_direction``, ``view_box`` (tuple[float,
    float, float, float])

    Args:
        prob (float | list[float]): Probability of a flip, or of one in each direction.
        direction (str | list[str]): 'horizontal', 'vertical' or 'diagonal'
            (both at once). Defaults to 'horizontal'.
    """

    keeps_view_box = True

    def _choose_direction(self) -> Optional[str]:
        if isinstance(self.direction, str) and isinstance(self.prob, float):
            # mmcv's np.random.choice takes longer than the flip
            return self.direction if np.random.rand() < self.prob else None
        return super()._choose_direction()

    def _flip(self, results: dict) -> None:
        img = results['img']
        if not _FLIPPED_TOO.isdisjoint(results):
            super()._flip(results)
        # mmcv returns an array with negative strides, which slows every later step
        flipped = cv2.flip(img, _CV2_FLIP[results['flip_direction']])
        results['img'] = flipped.reshape(img.shape)  # OpenCV drops a single channel

    def transform(self, results: dict) -> dict:
        """Flip ``img`` and ``view_box``, or neither."""
        results = super().transform(results)
        flipped = _FLIPPED[results['flip_direction']]
        results['view_box'] = view_inside(results.get('view_box', WHOLE), flipped)
        return results


@TRANSFORMS.register_module()
class RandomSquareCrop(BaseTransform):
    """Cut a random square and resize it without a filter, and keep the box of the view.

    It is the crop of PiCIE's and DenseSiam's code (https://github.com/ZwwWayne/DenseSiam): the
    side is s times that of the image, rounded down, s is uniform; the place is uniform. Bilinear
    interpolation, as PyTorch's without ``antialias`` and ``align_corners``.

    **Required Keys:** ``img``, ``view_box`` (optional)

    **Modified Keys:** ``img``, ``img_shape``

    **Added Keys:** ``view_box`` (tuple[float, float, float, float])

    Args:
        scale (int): Side of the result in pixels.
        side_range (Sequence[float]): Range of s, in (0, 1]. Defaults to (0.5, 1).

    Raises:
        InputError: ``side_range`` is no such range, or ``scale`` no number of pixels.
    """

    keeps_view_box = True

    def __init__(self, scale: int, side_range: Sequence[float] = (0.5, 1.0)) -> None:
        check_counts(scale=scale)
        low, high = side_range
        if not 0 < low <= high <= 1:
            raise InputError(f'side_range must be a range within (0, 1], got {side_range!r}')
        self.scale = scale
        self.side_range = (low, high)

    def draw_place(self) -> Sequence[float]:
        """Draw the place of the crop, in [0, 1] from the top and from the left."""
        return np.random.rand(2)

    def transform(self, results: dict) -> dict:
        """Crop and resize ``img`` and add ``view_box``."""
        img = results['img']
        height, width = img.shape[:2]
        side = max(1, int(np.random.uniform(*self.side_range) * min(height, width)))
        top, left = (
            int(round((size - side) * place))
            for size, place in zip((height, width), self.draw_place())
        )
        part = part_of(img, top, left, side, side)
        results['view_box'] = view_inside(results.get('view_box', WHOLE), part)
        cut = np.ascontiguousarray(img[top : top + side, left : left + side])
        view = cv2.resize(cut, (self.scale, self.scale), interpolation=cv2.INTER_LINEAR)
        # OpenCV drops a single channel
        results['img'] = view.reshape(self.scale, self.scale, *img.shape[2:])
        results['img_shape'] = (self.scale, self.scale)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, side_range={self.side_range})'


class DeferredView(NamedTuple):
    """Hold an unfinished view, which mmdense's ``PackInputs`` takes and mmpretrain's refuses."""

    img: np.ndarray
    operations: List[Optional[Operation]]


@TRANSFORMS.register_module()
class MultiView(_MultiView):
    """Make views as mmpretrain's ``MultiView``, with their boxes.

    Optionally all operations but geometry are deferred to the device.

    Every view knows the boxes of those before it (``earlier_boxes``), for
    :class:`RandomResizedCrop` with ``min_overlap``.

    A transform that is known to move pixels without keeping the box is refused:
    an algorithm that compares places would learn nonsense, silently. A custom
    transform that composes ``view_box`` sets the class attribute
    ``keeps_view_box = True``.

    With ``device_augment`` colors, blur and patches are drawn here, and
    :class:`~mmdense.models.SelfSupDataPreprocessor` applies them to the batch.
    After the first such transform a pipeline may then have only others of
    mmdense, and flips.

    **Required Keys:** ``img``, ``view_box`` (optional)

    **Modified Keys:** ``img`` (list[np.ndarray], or list[DeferredView] for
    mmdense's ``PackInputs``)

    **Added Keys:** ``view_boxes`` (np.ndarray): (V, 4) float64, in the order of
    the views. Name it in the ``meta_keys`` of ``PackInputs``.

    Args:
        transforms (list[list[dict | Callable]]): The pipelines.
        num_views (int | list[int]): Number of views that each of them makes.
        with_boxes (bool): Whether the algorithm compares places. False adds no
            ``view_boxes`` and takes any transform. Defaults to True.
        device_augment (bool): Whether the device applies colors, blur and patches.
            Defaults to False.

    Raises:
        InputError: A pipeline moves pixels without keeping the box, or cannot be
            finished on the device.
    """

    def __init__(
        self,
        transforms: List[list],
        num_views: Union[int, List[int]],
        with_boxes: bool = True,
        device_augment: bool = False,
    ) -> None:
        super().__init__(transforms, num_views)
        self.with_boxes = with_boxes
        self.device_augment = device_augment
        for i, pipeline in enumerate(self.pipelines):
            for culprit in _movers(pipeline) if with_boxes else ():
                raise InputError(
                    f'MultiView: pipeline {i} has {culprit}, which moves pixels without keeping '
                    "the view's box; use RandomResizedCrop and RandomFlip of mmdense, or "
                    'with_boxes=False where no boxes are needed'
                )
            for culprit, before in _undeferrable(pipeline) if device_augment else ():
                raise InputError(
                    f'MultiView: pipeline {i} has {culprit} after {before}, which is left to the '
                    'device: put it before, use the ColorJitter, RandomGrayscale, GaussianBlur '
                    'and Solarize of mmdense, or leave out device_augment'
                )

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by the list of views and add ``view_boxes``."""
        img, rest = results['img'], {k: v for k, v in results.items() if k != 'img'}
        views: List[Union[np.ndarray, DeferredView]] = []
        boxes: List[Box] = []
        for pipeline in self.transforms:
            view = {k: v if isinstance(v, _CONSTANT) else copy.deepcopy(v) for k, v in rest.items()}
            view['earlier_boxes'] = tuple(boxes)
            # Transforms may write to the pixels, but not behind a crop.
            crops = getattr(next(iter(pipeline), None), 'keeps_pixels', False)
            view['img'] = img if crops else img.copy()
            if self.device_augment:
                view['deferred'] = []
            view = pipeline(view)
            deferred = view.get('deferred')
            views.append(view['img'] if deferred is None else DeferredView(view['img'], deferred))
            boxes.append(view.get('view_box', WHOLE))
        results['img'] = views
        if self.with_boxes:
            results['view_boxes'] = np.array(boxes, np.float64)
        return results


def part_of(img: np.ndarray, top: int, left: int, h: int, w: int) -> Box:
    """Return a crop's box in the frame of the image that it is cut from."""
    height, width = img.shape[:2]
    return left / width, top / height, (left + w) / width, (top + h) / height


def view_inside(outer: Sequence[float], inner: Sequence[float]) -> Box:
    """Map the box ``inner`` from the frame of the view ``outer`` to that of the image.

    Edges at 0 and 1, such as those of flips, are exact.
    """
    x0, y0, x1, y1 = (
        float((1 - t) * outer[i % 2] + t * outer[i % 2 + 2]) for i, t in enumerate(inner)
    )
    return x0, y0, x1, y1


def _intersection(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes share, flipped or not, in 0..1 of the image."""
    sides = []
    for i in (0, 1):
        low, high = (sorted(edges) for edges in zip(*(sorted(box[i::2]) for box in (a, b))))
        sides.append(max(high[0] - low[1], 0))
    return sides[0] * sides[1]


def _movers(transform: Any) -> Iterator[str]:
    """Yield the names of transforms, inside wrappers too, that move pixels and lose the box."""
    if isinstance(transform, (list, tuple)):
        inner: Sequence = transform
    elif getattr(transform, 'keeps_view_box', False):
        return
    else:
        bases = type(transform).__mro__
        if any(_MOVES.search(base.__name__) for base in bases) or any(
            # mmpretrain's hold their parts, which are checked below
            base.__module__.startswith('torchvision.') and _AUTO.search(base.__name__)
            for base in bases
        ):
            yield type(transform).__name__
        # Compose, RandomApply…; mmpretrain's wrappers of torchvision and of albumentations
        inner = [getattr(transform, name, ()) for name in ('transforms', 't', 'aug')]
    for one in inner:
        yield from _movers(one)


def _undeferrable(transform: Any) -> Iterator[Tuple[str, str]]:
    """Yield (name, name of a deferred one before it) of transforms that cannot be deferred."""
    before: List[Any] = []
    for one in _flatten(transform):
        late = isinstance(one, (Photometric, JigsawPatches))
        flips = isinstance(one, _RandomFlip)  # flips commute with colors and blur, not with patches
        if before and not late and not (flips and not isinstance(before[-1], JigsawPatches)):
            yield type(one).__name__, type(before[-1]).__name__
        if late:
            before.append(one)


def _flatten(transform: Any) -> Iterator[Any]:
    """Yield the transforms in ``transform``, in order, inside wrappers too."""
    parts = transform if isinstance(transform, (list, tuple)) else None
    parts = getattr(transform, 'transforms', parts)
    if parts is None:
        yield transform
    else:
        for part in parts:
            yield from _flatten(part)
