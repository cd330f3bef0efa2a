"""Views of every recipe are, bit for bit, those of plain OpenCV and PyTorch, step by step.

The package may compute them in any faster way, from the same random draws.
"""

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from mmengine.config import Config
from mmpretrain.datasets.transforms import RandomResizedCrop as PlainCrop
from torch.nn.functional import interpolate

from mmdense.datasets.transforms import apply_operation
from mmdense.registry import TRANSFORMS

SEEDS = 24


@pytest.fixture(scope='module')
def images():
    """BGR, of different colors and sizes, with flat and noisy ones."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (250, 333, 3), dtype=np.uint8)
    flat = np.full((300, 240, 3), (3, 250, 128), np.uint8)
    photographs = [getattr(skimage.data, name)() for name in ('astronaut', 'coffee', 'cat')]
    return [noise, flat, *(img[..., ::-1].copy() for img in photographs)]


# ---------------------------------------------------------------- the reference


def operate(img, name, value):
    """Apply one operation, written out."""
    luma = np.array([0.114, 0.587, 0.299], np.float32)
    matrix = np.zeros((3, 4), np.float32)
    if name == 'offset':
        return np.clip(np.floor(img + np.float32(255 * value) + 1e-4), 0, 255).astype(np.uint8)
    if name == 'hue':
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
        hsv[..., 0] += np.uint8(int(value * 255) % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
    if name == 'blur':
        size = 2 * max(math.ceil(3 * value), 1) + 1
        return cv2.GaussianBlur(img, (size, size), value, borderType=cv2.BORDER_REFLECT_101)
    if name == 'solarize':
        return np.where(img < value, img, 255 - img)
    if name == 'grayscale':
        matrix[:] = *luma, 0.5
    if name == 'saturation':
        matrix[:, :3] = luma
        matrix *= 1.0 - value
    if name != 'grayscale':
        matrix.flat[::5] += value
    if name == 'contrast':
        mean = int(cv2.mean(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))[0] + 0.5)
        matrix[:, 3] += (1.0 - value) * mean
    matrix[:, 3] -= 0.4999
    return cv2.transform(img, matrix)


def place(img, crop, first):
    """Draw (top, left, h, w); SlotCon's second view overlaps the box ``first``."""
    height, width = img.shape[:2]
    plain = PlainCrop(crop['scale'], crop_ratio_range=crop['crop_ratio_range'])
    least = crop.get('min_overlap', 0)
    if not least or first is None:
        return plain.rand_crop_params(img)
    for _ in range(10):
        share = np.random.uniform(*crop['crop_ratio_range'])
        aspect = math.exp(np.random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = int(round(math.sqrt(share * height * width * aspect)))
        h = int(round(math.sqrt(share * height * width / aspect)))
        if 0 < w <= width and 0 < h <= height:
            top = np.random.randint(0, height - h + 1)
            left = np.random.randint(0, width - w + 1)
            y, x, fh, fw = first
            common = max(min(top + h, y + fh) - max(top, y), 0)
            common *= max(min(left + w, x + fw) - max(left, x), 0)
            if common >= least * share * height * width - 1e-6:
                return top, left, h, w
    return plain.rand_crop_params(img)


def draw(step):
    """Return the operations of one photometric transform."""
    kind = step['type']
    if kind == 'ColorJitter':
        if np.random.rand() >= step['prob']:
            return []
        names = ['brightness', 'contrast', 'saturation', 'hue']
        ranges = [(-step[n], step[n]) if n == 'hue' else (1 - step[n], 1 + step[n]) for n in names]
        if step.get('additive_brightness'):
            names[0], ranges[0] = 'offset', (-step['brightness'], step['brightness'])
        values = [np.random.uniform(*range_) for range_ in ranges]
        return [(names[i], values[i]) for i in np.random.permutation(4)]
    if np.random.rand() >= step['prob']:
        return []
    if kind == 'GaussianBlur':
        return [('blur', np.random.uniform(*step['sigma']))]
    return [('grayscale', 0.0) if kind == 'RandomGrayscale' else ('solarize', step['thr'])]


def reference(img, steps, first):
    """Make one view.

    Returns:
        tuple[np.ndarray, tuple]: The view, H×W×3; the place of its crop.
    """
    where = None
    for step in steps:
        kind = step['type']
        if kind == 'RandomResizedCrop':
            where = top, left, h, w = place(img, step, first)
            planes = torch.from_numpy(img[top : top + h, left : left + w].copy())
            size, mode = (step['scale'],) * 2, step.get('interpolation', 'bilinear')
            planes = interpolate(planes.permute(2, 0, 1)[None], size, mode=mode, antialias=True)
            img = planes[0].permute(1, 2, 0).numpy().copy()
        elif kind == 'RandomFlip':
            img = img[:, ::-1].copy() if np.random.rand() < step['prob'] else img
        elif kind == 'JigsawPatches':
            parts = []
            for cell in np.random.permutation(9):
                top, left = (85 * i + np.random.randint(0, 85 - 63) for i in divmod(cell, 3))
                parts.append(img[top : top + 64, left : left + 64])
            img = np.concatenate(parts, 1)
        else:
            for operation in draw(step):
                img = operate(img, *operation)
    return img, where


# ---------------------------------------------------------------- the tests


VIEWS = sorted((Path(__file__).parents[2] / 'configs' / '_base_' / 'views').glob('*.py'))


# They have tests of their own.
OTHER = re.compile('RandAugment|RandomSquareCrop|ResizeShortSide|mmdet')


@pytest.mark.parametrize(
    'name', [path.stem for path in VIEWS if not OTHER.search(path.read_text())]
)
def test_views_of_the_recipes(name, repo, images, mmdense_scope):
    """Pixels, and what is left of the random stream, are equal to the last bit."""
    config = Config.fromfile(str(repo / 'configs' / '_base_' / 'views' / f'{name}.py'))
    *_, multi_view, pack = config.train_pipeline
    ours = [TRANSFORMS.build(step) for step in (multi_view, pack)]
    numbers = multi_view['num_views']
    numbers = [numbers] if isinstance(numbers, int) else numbers
    pipelines = [p for p, n in zip(multi_view['transforms'], numbers) for _ in range(n)]
    for seed in range(SEEDS):
        img = images[seed % len(images)]
        np.random.seed(seed)
        expected, first = [], None
        for steps in pipelines:
            view, where = reference(img, steps, first)
            first = first or where
            expected.append(view)
        rest = np.random.rand()
        np.random.seed(seed)
        # without a proposal any crop will do
        results = dict(img=img.copy(), img_path='a.jpg', proposals=np.zeros((0, 4), np.float32))
        for transform in ours:
            results = transform(results)
        assert np.random.rand() == rest
        for view, ref in zip(results['inputs'], expected):
            assert view.dtype == torch.uint8 and view.is_contiguous()
            np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), ref)


RANGES = dict(
    brightness=(0.0, 2.0),
    offset=(-1.0, 1.0),
    contrast=(0.0, 2.0),
    saturation=(0.0, 2.0),
    grayscale=(0.0, 0.0),
    hue=(-0.5, 0.5),
    blur=(0.05, 3.0),
    solarize=(0.0, 256.0),
)


@pytest.mark.parametrize('name', RANGES)
def test_operations(name, images):
    """Of any strength, on images of any size."""
    rng = np.random.default_rng(1)
    for i in range(40):
        img = images[i % len(images)]
        if i % 2:  # also smaller than a vector of the processor, and than the blur's kernel
            img = rng.integers(0, 256, (*rng.integers(1, 40, 2), 3), dtype=np.uint8)
        value = rng.uniform(*RANGES[name])
        before = img.copy()
        ours = apply_operation(img, name, value)
        np.testing.assert_array_equal(ours, operate(img, name, value), f'{name} {value}')
        np.testing.assert_array_equal(img, before)
