# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Colour jitter, greyscale, blur and solarization with OpenCV, as torchvision's on Pillow images.

A transform here draws OPERATIONS, pairs of a name and a value such as ``('hue', 0.05)``, and
applies them to ``results['img']``. Where ``results`` has a list ``deferred`` they are put there
instead, and ``batched.py`` applies them to the whole batch on its device: what is random is drawn
in one place, and the two ways differ in rounding alone.

The papers' code ran torchvision's on Pillow images, and so do these: values are cut to whole
numbers after every operation, greyscale is ITU-R 601, and hue turns in HSV.
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
COLOUR = ('brightness', 'contrast', 'saturation', 'grayscale')


class Photometric(BaseTransform):
    """What the transforms of this file have in common.

    **Required Keys:** ``img`` (np.ndarray): H×W×3 uint8, BGR; ``deferred``
    (list, optional)

    **Modified Keys:** ``img``, or ``deferred``
    """

    def draw(self) -> List[Optional[Operation]]:
        """Random operations, always equally many: None where there is nothing to do."""
        raise NotImplementedError

    def transform(self, results: dict) -> dict:
        """Apply what is drawn, or put it off."""
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
    """Change brightness, contrast, saturation and hue, in random order.

    Draws as torchvision's ``ColorJitter`` does.

    Args:
        brightness (float | Sequence[float]): Factors are uniform in
            [max(0, 1 − brightness), 1 + brightness], or in the range given.
            Defaults to 0, none.
        contrast (float | Sequence[float]): Likewise.
        saturation (float | Sequence[float]): Likewise.
        hue (float | Sequence[float]): Turns of the colour circle, uniform in
            [−hue, hue], or in the range given, within [−0.5, 0.5]. Defaults
            to 0, none.
        prob (float): Of jittering at all. Defaults to 1.

    Raises:
        InputError: A value that is none of these.
    """

    def __init__(
        self,
        brightness: Union[float, Sequence[float]] = 0.0,
        contrast: Union[float, Sequence[float]] = 0.0,
        saturation: Union[float, Sequence[float]] = 0.0,
        hue: Union[float, Sequence[float]] = 0.0,
        prob: float = 1.0,
    ) -> None:
        check_fractions(prob=prob)
        factor = dict(center=1.0, low=0.0, high=float('inf'))
        self.brightness = _range('brightness', brightness, **factor)
        self.contrast = _range('contrast', contrast, **factor)
        self.saturation = _range('saturation', saturation, **factor)
        self.hue = _range('hue', hue, center=0.0, low=-0.5, high=0.5)
        self.prob = prob

    def draw(self) -> List[Optional[Operation]]:
        names = [n for n in ('brightness', 'contrast', 'saturation', 'hue') if getattr(self, n)]
        if np.random.rand() >= self.prob:
            return [None] * len(names)
        values = [np.random.uniform(*getattr(self, name)) for name in names]
        return [(names[i], values[i]) for i in np.random.permutation(len(names))]


@TRANSFORMS.register_module()
class RandomGrayscale(Photometric):
    """Replace colours by their luma, in three equal channels.

    Args:
        prob (float): Defaults to 0.1.
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
            pixels, above 0; uniform between them. Defaults to (0.1, 2.0), MoCo
            v2's and BYOL's.
        prob (float): Defaults to 0.5.

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
        thr (int): In 0..256. Defaults to 128.
        prob (float): Defaults to 0.5.

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
    """One operation on one image.

    Args:
        img (np.ndarray): H×W×3 uint8, BGR; left as it is.
        name (str): 'brightness', 'contrast', 'saturation', 'grayscale',
            'hue', 'blur' or 'solarize'.
        value (float): Factor, factor, factor, nothing, turns, sigma in
            pixels, threshold.

    Returns:
        np.ndarray: H×W×3 uint8.
    """
    if name in COLOUR:
        matrix, share = colour_matrix(name, value)
        if share:
            matrix[:, 3] += share * int(cv2.mean(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))[0] + 0.5)
        matrix[:, 3] -= (
            0.4999  # OpenCV rounds; a bit less than one half, so that whole numbers stay
        )
        return cv2.transform(img, matrix)
    if name == 'hue':
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
        hsv[..., 0] += np.uint8(int(value * 255) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    if name == 'blur':
        size = 2 * blur_radius(value) + 1
        return cv2.GaussianBlur(img, (size, size), value, borderType=cv2.BORDER_REFLECT_101)
    if name == 'solarize':
        bright = cv2.threshold(img, np.ceil(value) - 1, 255, cv2.THRESH_BINARY)[1]
        return cv2.bitwise_xor(img, bright)
    raise KeyError(name)


def colour_matrix(name: str, value: float) -> Tuple[np.ndarray, float]:
    """What an operation of COLOUR does to the colour x of a pixel, B, G and R:
    ⌊M·x + s·m + o⌋ within 0..255, where m is the image's mean luma, rounded.

    Returns:
        tuple[np.ndarray, float]: (M, o), 3×4 float32; s.
    """
    matrix = np.zeros((3, 4), np.float32)
    if name == 'grayscale':
        matrix[:] = *LUMA, 0.5  # rounded
        return matrix, 0.0
    if name == 'saturation':
        matrix[:, :3] = LUMA
        matrix *= 1.0 - value
    matrix.flat[::5] += value
    return matrix, 1.0 - value if name == 'contrast' else 0.0


def blur_radius(sigma: float) -> int:
    """Pixels of a Gaussian's kernel on each side: three sigma."""
    return max(int(np.ceil(3 * sigma)), 1)


def _is_range(value) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))


def _range(name: str, value, center: float, low: float, high: float) -> Optional[tuple]:
    """Of a number, [center − value, center + value]; None where nothing changes."""
    if is_number(value) and value >= 0:
        value = (max(center - value, 0.0) if center else -value, center + value)
    if not _is_range(value) or not low <= value[0] <= value[1] <= high:
        raise InputError(
            f'{name} must be a number of at least 0 or a range within [{low}, {high}], '
            f'got {value!r}'
        )
    return None if value[0] == value[1] == center else tuple(map(float, value))
