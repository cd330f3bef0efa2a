# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest

from mmdense.datasets import MultiView, RandomFlip, RandomSquareCrop
from mmdense.utils.errors import InputError


def ramp(height, width):
    """An image whose pixels say where they are: x and y of their centers, and nothing."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x / width, y / height, np.zeros_like(x)], axis=-1).astype(np.float32)


@pytest.mark.parametrize('height, width', [(64, 64), (48, 80), (90, 40)])
@pytest.mark.parametrize('flip', [0.0, 1.0])
def test_shows_what_the_box_says(height, width, flip):
    crop, flip = RandomSquareCrop(16, (0.4, 0.9)), RandomFlip(prob=flip)
    for _ in range(5):
        results = flip.transform(crop.transform(dict(img=ramp(height, width))))
        view, (x0, y0, x1, y1) = results['img'], results['view_box']
        assert view.shape == (16, 16, 3) and results['img_shape'] == (16, 16)
        side = round(abs(x1 - x0) * width)
        assert side == round((y1 - y0) * height)  # a square of pixels
        assert int(0.4 * min(height, width)) <= side <= 0.9 * min(height, width)
        place = (np.arange(16) + 0.5) / 16
        inner = slice(2, -2)  # the crop's border is repeated
        assert np.allclose(view[8, inner, 0], (x0 + place * (x1 - x0))[inner], atol=1e-3)
        assert np.allclose(view[inner, 8, 1], (y0 + place * (y1 - y0))[inner], atol=1e-3)


def test_draws_are_uniform():
    np.random.seed(0)
    crop, boxes = RandomSquareCrop(4), []
    for _ in range(300):
        boxes.append(crop.transform(dict(img=np.zeros((100, 100, 3), np.uint8)))['view_box'])
    left, top, right, _ = np.array(boxes).T
    side = right - left
    assert 0.499 < side.min() < 0.53 and 0.97 < side.max() <= 1
    for start in (left, top):
        place = start[side < 0.9] / (1 - side[side < 0.9])
        assert 0.44 < place.mean() < 0.56 and place.min() < 0.05 and place.max() > 0.95


@pytest.mark.parametrize('channels', [1, 3, 6])
def test_channels_stay(channels):
    results = RandomSquareCrop(8).transform(dict(img=np.ones((20, 30, channels), np.uint8)))
    assert results['img'].shape == (8, 8, channels) and (results['img'] == 1).all()


def test_multi_view_takes_it():
    views = MultiView([[RandomSquareCrop(8)], [RandomSquareCrop(8, (1.0, 1.0))]], [1, 1])
    results = views.transform(dict(img=np.zeros((30, 30, 3), np.uint8)))
    assert results['view_boxes'].shape == (2, 4)
    assert results['view_boxes'][1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize('side_range', [(0, 1), (0.5, 1.1), (0.9, 0.5)])
def test_wrong_ranges_say_so(side_range):
    with pytest.raises(InputError, match='side_range must be a range within'):
        RandomSquareCrop(8, side_range)
    with pytest.raises(InputError, match='scale must be'):
        RandomSquareCrop(0)
