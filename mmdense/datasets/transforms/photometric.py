# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Color jitter, grayscale, blur and solarization with OpenCV, as torchvision's on Pillow images.

A transform here draws OPERATIONS, pairs of a name and a value such as ``('hue', 0.05)``, and
applies them to ``results['img']``. If ``results`` has a list ``deferred``, it appends them there
instead, and ``batched.py`` applies them to the complete batch on its device: random values are
drawn in one place, and the two ways differ in rounding alone.

The papers' code ran torchvision's transforms on Pillow images. These do the same: values are
truncated to whole numbers after every operation, grayscale is ITU-R 601, and hue turns in HSV.

Images of other than three channels have no colors: saturation, hue and grayscale leave them as they
are, and contrast takes the mean of all channels for the luma.
"""

from typing import List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmdense.registry import TRANSFORMS
from mmdense.utils.checks import check_fractions, check_number, is_number
from mmdense.utils.errors import InputError

Operation = Tuple[str, Union[float, tuple]]

LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # of B, G and R
COLOUR = ('brightness', 'offset', 'contrast', 'saturation', 'grayscale')
OF_COLORS = ('saturation', 'grayscale', 'hue')  # of images of three channels alone


class Photometric(BaseTransform):
    """Draw operations and apply or defer them: the base of the transforms in this file.

    **Required Keys:** ``img`` (np.ndarray): H×W×C uint8, BGR with 3 channels; ``deferred``
    (list, optional)

    **Modified Keys:** ``img``, or ``deferred``
    """

    def draw(self) -> List[Optional[Operation]]:
        """Return random operations, always the same number: None for no operation."""
        raise NotImplementedError

    def transform(self, results: dict) -> dict:
        """Apply the operations that are drawn, or defer them."""
        operations = self.draw()
        if 'deferred' in results:
            results['deferred'].extend(operations)
        else:
            for operation in filter(None, operations):
                results['img'] = apply_operation(results['img'], *operation)
        return results

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class ColorJitter(Photometric):
    """Change brightness, contrast, saturation and hue, in random order, as torchvision does.

    Args:
        brightness (float | Sequence[float]): Factors are uniform in
            [max(0, 1 − brightness), 1 + brightness], or in the given range.
            Defaults to 0, no change.
        contrast (float | Sequence[float]): Factors, likewise.
        saturation (float | Sequence[float]): Factors, likewise.
        hue (float | Sequence[float]): Turns of the color circle, uniform in
            [−hue, hue], or in the given range, within [−0.5, 0.5]. Defaults
            to 0, no change.
        prob (float): Probability of any change. Defaults to 1.
        additive_brightness (bool): Whether brightness is added, as in BYOL's published code, and
            not multiplied. Then ``brightness`` gives shares of white, uniform in
            [−brightness, brightness], or in the given range, within [−1, 1]. Defaults to False.

    Raises:
        InputError: A value is out of its range.
    """

    def __init__(
        self,
        brightness: Union[float, Sequence[float]] = 0.0,
        contrast: Union[float, Sequence[float]] = 0.0,
        saturation: Union[float, Sequence[float]] = 0.0,
        hue: Union[float, Sequence[float]] = 0.0,
        prob: float = 1.0,
        additive_brightness: bool = False,
    ) -> None:
        check_fractions(prob=prob)
        factor = dict(center=1.0, low=0.0, high=float('inf'))
        share = dict(center=0.0, low=-1.0, high=1.0)
        self.additive_brightness = additive_brightness
        self.brightness = _check_range(
            'brightness', brightness, **(share if additive_brightness else factor)
        )
        self.contrast = _check_range('contrast', contrast, **factor)
        self.saturation = _check_range('saturation', saturation, **factor)
        self.hue = _check_range('hue', hue, center=0.0, low=-0.5, high=0.5)
        self.prob = prob

    def draw(self) -> List[Optional[Operation]]:
        names = [n for n in ('brightness', 'contrast', 'saturation', 'hue') if getattr(self, n)]
        if np.random.rand() >= self.prob:
            return [None] * len(names)
        values = [np.random.uniform(*getattr(self, name)) for name in names]
        if self.additive_brightness:
            names = ['offset' if name == 'brightness' else name for name in names]
        return [(names[i], values[i]) for i in np.random.permutation(len(names))]


@TRANSFORMS.register_module()
class RandomGrayscale(Photometric):
    """Replace colors by their luma, in three equal channels.

    Args:
        prob (float): Probability. Defaults to 0.1.
    """

    def __init__(self, prob: float = 0.1) -> None:
        check_fractions(prob=prob)
        self.prob = prob

    def draw(self) -> List[Optional[Operation]]:
        return [('grayscale', 0.0) if np.random.rand() < self.prob else None]


@TRANSFORMS.register_module()
class GaussianBlur(Photometric):
    """Blur by a Gaussian, mirrored at the edges and cut off at three sigma.

    Args:
        sigma (Sequence[float]): Least and largest standard deviation in
            pixels, above 0; uniform between them. Defaults to (0.1, 2.0), as
            MoCo v2 and BYOL.
        prob (float): Probability. Defaults to 0.5.

    Raises:
        InputError: ``sigma`` is no such range.
    """

    def __init__(self, sigma: Sequence[float] = (0.1, 2.0), prob: float = 0.5) -> None:
        check_fractions(prob=prob)
        if not _is_range(sigma) or not 0 < sigma[0] <= sigma[1] < float('inf'):
            raise InputError(f'sigma must be a range (low, high) above 0, got {sigma!r}')
        self.sigma = tuple(sigma)
        self.prob = prob

    def draw(self) -> List[Optional[Operation]]:
        if np.random.rand() >= self.prob:
            return [None]
        return [('blur', np.random.uniform(*self.sigma))]


@TRANSFORMS.register_module()
class Solarize(Photometric):
    """Invert values at and above a threshold.

    Args:
        thr (int): The threshold, in 0..256. Defaults to 128.
        prob (float): Probability. Defaults to 0.5.

    Raises:
        InputError: ``thr`` is not in 0..256.
    """

    def __init__(self, thr: int = 128, prob: float = 0.5) -> None:
        check_fractions(prob=prob)
        check_number('thr', thr, lambda x: 0 <= x <= 256, 'in 0..256')
        self.thr = thr
        self.prob = prob

    def draw(self) -> List[Optional[Operation]]:
        return [('solarize', float(self.thr)) if np.random.rand() < self.prob else None]


def apply_operation(img: np.ndarray, name: str, value: float) -> np.ndarray:
    """Apply one operation to one image.

    Args:
        img (np.ndarray): H×W×C uint8, BGR with 3 channels; left as it is.
        name (str): 'brightness', 'offset', 'contrast', 'saturation', 'grayscale',
            'hue', 'blur' or 'solarize'.
        value (float): Respectively factor, share of white, factor, factor, unused, turns, sigma
            in pixels, threshold.

    Returns:
        np.ndarray: H×W×C uint8.
    """
    colored = img.shape[2] == 3
    if name in OF_COLORS and not colored:
        return img
    if name in COLOUR:
        matrix, share = colour_matrix(name, value)
        if share:
            mean = cv2.mean(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))[0] if colored else img.mean()
            matrix[:, 3] += share * int(mean + 0.5)
        # OpenCV rounds; a bit less than one half, so that whole numbers stay
        matrix[:, 3] -= 0.4999
        if name in ('brightness', 'offset', 'contrast'):
            # all channels alike, as one channel, which OpenCV does in a fourth of the time
            flat = np.ascontiguousarray(img).reshape(len(img), -1)
            return cv2.transform(flat, matrix[:1, ::3].copy()).reshape(img.shape)
        return cv2.transform(img, matrix)
    if name == 'hue':
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
        turn = np.zeros_like(hsv[0])  # by the row: faster than one channel, which is not contiguous
        turn[:, 0] = int(value * 255) % 256
        hsv += turn
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    if name == 'blur':
        return _blur(img, value).reshape(img.shape)  # OpenCV drops a single channel
    if name == 'solarize':
        bright = cv2.threshold(img, np.ceil(value) - 1, 255, cv2.THRESH_BINARY)[1]
        return cv2.bitwise_xor(img, bright.reshape(img.shape)).reshape(img.shape)
    raise KeyError(name)


def colour_matrix(name: str, value: float) -> Tuple[np.ndarray, float]:
    """Return an operation of COLOUR as a map of a pixel's color x, in the order B, G, R.

    The result is ⌊M·x + s·m + o⌋ within 0..255, with m the image's mean luma, rounded.

    Returns:
        tuple[np.ndarray, float]: (M, o), 3×4 float32; s.
    """
    matrix = np.zeros((3, 4), np.float32)
    if name == 'grayscale':
        matrix[:] = *LUMA, 0.5  # rounded
        return matrix, 0.0
    if name == 'offset':
        matrix.flat[::5] = 1.0
        matrix[:, 3] = 255 * value
        return matrix, 0.0
    if name == 'saturation':
        matrix[:, :3] = LUMA
        matrix *= 1.0 - value
    matrix.flat[::5] += value
    return matrix, 1.0 - value if name == 'contrast' else 0.0


def _blur(img: np.ndarray, sigma: float) -> np.ndarray:
    """Compute ``cv2.GaussianBlur``, bit for bit, in half of its time.

    It rounds the weights to n/256, so that many at the ends are 0, and the sum to the nearest
    whole number, halves up. Floating point numbers hold that sum exactly. ``sepFilter2D`` rounds
    halves to even: half of the last bit is added, for which a sum around 0 has the room.
    """
    radius = blur_radius(sigma)
    size = 2 * radius + 1
    if radius <= 2:  # where nothing is gained
        return cv2.GaussianBlur(img, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
    # the weights, in what the blur makes of one point
    point = np.zeros((1, size), np.uint8)
    point[0, radius] = 255
    weights = cv2.GaussianBlur(point, (size, 1), sigma, borderType=cv2.BORDER_CONSTANT)
    weights = weights[0].astype(int)
    weights[radius] = 256 - 2 * weights[:radius].sum()
    weights = (weights[np.flatnonzero(weights)] / 256).astype(np.float32)
    sums = cv2.sepFilter2D(
        *(img, cv2.CV_16S, weights, weights),
        delta=-128 + 2**-17,
        borderType=cv2.BORDER_REFLECT_101,
    )
    return cv2.convertScaleAbs(sums, alpha=1, beta=128)


def blur_radius(sigma: float) -> int:
    """Return the number of pixels of a Gaussian's kernel on each side: three sigma."""
    return max(int(np.ceil(3 * sigma)), 1)


def _is_range(value) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))


def _check_range(name: str, value, center: float, low: float, high: float) -> Optional[tuple]:
    """Return [center − value, center + value] for a number; None for no change."""
    if is_number(value) and value >= 0:
        value = (max(center - value, 0.0) if center else -value, center + value)
    if not _is_range(value) or not low <= value[0] <= value[1] <= high:
        raise InputError(
            f'{name} must be a number of at least 0 or a range within [{low}, {high}], '
            f'got {value!r}'
        )
    return None if value[0] == value[1] == center else tuple(map(float, value))
