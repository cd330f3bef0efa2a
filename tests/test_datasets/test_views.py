# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmpretrain.datasets.transforms import RandomResizedCrop as MMPretrainCrop
from PIL import Image
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from mmdense.datasets import MultiView, RandomFlip, RandomResizedCrop
from mmdense.registry import DATASETS, FUNCTIONS, TRANSFORMS
from mmdense.utils.errors import InputError

WHOLE = (0.0, 0.0, 1.0, 1.0)
DIRECTIONS = ['horizontal', 'vertical', 'diagonal']
CROP = dict(type='mmdense.RandomResizedCrop', scale=8)
SEEDS = st.integers(0, 2**32 - 1)


def centres(box, shape):
    """Where in the image the pixels of a view are: x of each column, y of each row."""
    (height, width), (x0, y0, x1, y1) = shape, box
    x = x0 + (x1 - x0) * (np.arange(width) + 0.5) / width
    y = y0 + (y1 - y0) * (np.arange(height) + 0.5) / height
    return x, y


def sides(box):
    return abs(box[2] - box[0]), abs(box[3] - box[1])


def intersection(a, b):
    area = 1
    for i in (0, 1):
        low = max(min(a[i], a[i + 2]), min(b[i], b[i + 2]))
        area *= max(min(max(a[i], a[i + 2]), max(b[i], b[i + 2])) - low, 0)
    return area


def fixed_crop(top, left, h, w, scale, **kwargs):
    crop = RandomResizedCrop(scale, **kwargs)
    crop.rand_crop_params = lambda img: (top, left, h, w)
    return crop


def ks_distance(a, b):
    """Of Kolmogorov and Smirnov: the largest difference of two samples' distributions."""
    both = np.sort(np.concatenate([a, b]))
    a, b = (np.searchsorted(np.sort(x), both, side='right') / len(x) for x in (a, b))
    return np.abs(a - b).max()


# ---------------------------------------------------------------- pixels and boxes


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 250), st.integers(1, 250), st.data())
def test_any_order_of_crops_and_flips_shows_what_the_box_says(height, width, data):
    """Without interpolation, so exactly: pixels hold their own column and row."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint8)
    results = dict(img=np.stack([x, y, np.zeros_like(x)], -1))
    for _ in range(data.draw(st.integers(0, 5))):
        if data.draw(st.booleans()):
            results = RandomFlip(prob=1.0, direction=data.draw(st.sampled_from(DIRECTIONS)))(
                results
            )
        else:
            (top, h), (left, w) = (
                data.draw(
                    st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(
                        lambda t, n=n: (t[0], min(t[1], n - t[0]))
                    )
                )
                for n in results['img'].shape[:2]
            )
            results = fixed_crop(top, left, h, w, (h, w), backend='pillow')(results)
    img, box = results['img'], results.get('view_box', WHOLE)
    assert all(isinstance(edge, float) and 0 <= edge <= 1 for edge in box)
    x, y = centres(box, img.shape[:2])
    np.testing.assert_allclose(
        np.broadcast_to(x * width - 0.5, img.shape[:2]), img[..., 0], 0, 1e-9
    )
    np.testing.assert_allclose(
        np.broadcast_to(y[:, None] * height - 0.5, img.shape[:2]), img[..., 1], 0, 1e-9
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(96, 160), st.integers(96, 160), SEEDS, st.data())
def test_resized_views_show_what_the_box_says(height, width, seed, data):
    """Pixels hold their own place, in 0..255; how far off may one be?

    A ramp is linear, so that bilinear weights, which are positive, change it at
    the border alone: where they are cut off, by up to half a pixel of the input
    where it is enlarged and .1 of a pixel of the output where it is shrunk.
    Rounding to a byte costs half a step in each of a resize's two passes.
    """
    np.random.seed(seed)
    x, y = centres(WHOLE, (height, width))
    x, y = np.broadcast_arrays(255 * x, 255 * y[:, None])
    results = dict(img=np.stack([x, y, 0 * x], -1).round().astype(np.uint8))
    rounding, border = 0.5 / 255 + 1e-9, np.zeros(2)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(['crop', 'resize', 'flip']))
        scale = data.draw(st.tuples(*[st.integers(24, 200)] * 2))
        before, shape = sides(results.get('view_box', WHOLE)), results['img'].shape[1::-1]
        if kind == 'crop':
            crop = RandomResizedCrop(scale, crop_ratio_range=(0.3, 1.0), backend='pillow')
            results = crop(results)
        elif kind == 'resize':  # mmcv's knows nothing of boxes, and need not
            resize = dict(type='mmpretrain.Resize', scale=scale[::-1], backend='pillow')
            results = TRANSFORMS.build(resize)(results)
        else:
            direction = data.draw(st.sampled_from(DIRECTIONS))
            results = RandomFlip(prob=0.7, direction=direction)(results)
            continue
        after = np.array(sides(results.get('view_box', WHOLE)))
        rounding += 2 * 0.5 / 255
        border += 0.5 * np.array(before) / shape + 0.1 * after / scale[::-1]
    img = results['img']
    x, y = centres(results.get('view_box', WHOLE), img.shape[:2])
    errors = np.abs(np.stack([img[..., 0] / 255 - x, img[..., 1] / 255 - y[:, None]]))
    assert (errors.max((1, 2)) <= rounding + border).all()
    assert (np.median(errors, (1, 2)) <= rounding).all()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(DIRECTIONS))
def test_two_flips_are_none(seed, direction):
    np.random.seed(seed)
    results = RandomResizedCrop(8)(dict(img=np.random.randint(0, 255, (30, 40, 3), np.uint8)))
    box, img = results['view_box'], results['img']
    flip = RandomFlip(prob=1.0, direction=direction)
    results = flip(results)
    assert results['view_box'] != box and not np.array_equal(results['img'], img)
    results = flip(results)
    assert results['view_box'] == box
    np.testing.assert_array_equal(results['img'], img)


def test_flips():
    def flip(**kwargs):
        return RandomFlip(**kwargs)(dict(img=np.zeros((2, 3, 3), np.uint8)))

    assert flip(prob=0.0)['view_box'] == WHOLE
    assert flip(prob=1.0)['view_box'] == (1, 0, 0, 1)
    assert flip(prob=1.0, direction='vertical')['view_box'] == (0, 1, 1, 0)
    assert flip(prob=1.0, direction='diagonal')['view_box'] == (1, 1, 0, 0)
    np.random.seed(0)
    drawn = [flip(prob=[0.2, 0.2, 0.2], direction=DIRECTIONS) for _ in range(100)]
    assert {(r['flip_direction'], r['view_box']) for r in drawn} == {
        (None, WHOLE),
        ('horizontal', (1, 0, 0, 1)),
        ('vertical', (0, 1, 1, 0)),
        ('diagonal', (1, 1, 0, 0)),
    }


# ---------------------------------------------------------------- drawing a crop


@pytest.mark.parametrize(
    'shape, box',
    [
        ((10, 200), (93 / 200, 0, 106 / 200, 1)),  # as wide as 4/3 of 10 allows
        ((200, 10), (0, 93 / 200, 1, 106 / 200)),
        ((100, 120), WHOLE),
    ],
)
@pytest.mark.parametrize('earlier', [(), [WHOLE]])
def test_central_crop_where_none_fits(shape, box, earlier):
    crop = RandomResizedCrop(8, crop_ratio_range=(0.99, 1.0), max_attempts=0, min_overlap=0.01)
    if shape != (100, 120):
        crop.max_attempts = 10
    results = crop(dict(img=np.zeros((*shape, 3), np.uint8), earlier_boxes=earlier))
    assert results['view_box'] == pytest.approx(box, abs=1e-12)
    assert results['img_shape'] == (8, 8)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('min_overlap', [0.0, 0.3])
def test_first_view_is_that_of_mmpretrain(backend, min_overlap):
    """Whatever ``min_overlap`` is."""
    img = np.random.RandomState(0).randint(0, 255, (50, 70, 3), np.uint8)
    ours = RandomResizedCrop((9, 7), backend=backend, min_overlap=min_overlap)
    theirs = MMPretrainCrop((9, 7), backend=backend)
    for seed in range(50):
        views = []
        for crop in (ours, theirs):
            np.random.seed(seed)
            views.append(crop(dict(img=img))['img'])
        np.testing.assert_array_equal(*views)


@pytest.mark.parametrize('shape', [(90, 120), (100, 40)])
def test_drawn_as_torchvision_does(shape):
    np.random.seed(0)
    torch.manual_seed(0)
    number = 3000
    crop = RandomResizedCrop(1)
    img = np.zeros((*shape, 3), np.uint8)
    ours = np.array([crop(dict(img=img))['view_box'] for _ in range(number)])
    image = torch.zeros(3, *shape)
    params = [TorchvisionCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(number)]
    top, left, h, w = np.array(params).T
    theirs = np.stack([left, top, left + w, top + h], 1) / np.array(shape[::-1] * 2)
    for a, b in zip(_features(ours), _features(theirs)):
        assert ks_distance(a, b) < 1.95 * math.sqrt(2 / number)  # p > .001


def _features(boxes):
    x0, y0, x1, y1 = boxes.T.round(9)  # ties would count as differences
    return x0, y0, x1, y1, (x1 - x0) * (y1 - y0), (x1 - x0) / (y1 - y0)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.floats(0.01, 0.05), st.floats(0.1, 0.6), st.booleans())
def test_overlap_with_the_first_view(seed, min_overlap, share, upside_down):
    """Also where the image is a crop itself, and flipped; of the area asked for."""
    np.random.seed(seed)
    results = RandomResizedCrop((40, 50), crop_ratio_range=(0.2, 1.0))(
        dict(img=np.zeros((120, 100, 3), np.uint8))
    )
    results = RandomFlip(prob=[0.25] * 3, direction=DIRECTIONS)(results)
    outer = results['view_box']
    x0, y0, x1, y1 = outer
    a, b, c, d = np.random.uniform(0, 0.7, 2).tolist() + np.random.uniform(0.2, 0.3, 2).tolist()
    first = (x0 + (x1 - x0) * a, y0 + (y1 - y0) * b)
    first += (first[0] + (x1 - x0) * c, first[1] + (y1 - y0) * d)
    if upside_down:
        first = (first[0], first[3], first[2], first[1])
    far = (2.0, 2.0, 3.0, 3.0)  # only the first counts
    crop = RandomResizedCrop(
        8, crop_ratio_range=(share, share), max_attempts=500, min_overlap=min_overlap
    )
    box = crop(dict(results, earlier_boxes=(first, far)))['view_box']
    asked = share * np.prod(sides(outer))
    assert intersection(box, first) >= min_overlap * asked * (1 - 1e-9)


def test_overlapping_crops_are_the_others_rejected():
    """A square and at most half of it: every size fits, all that is left is to reject."""
    first, img = (0.1, 0.5, 0.3, 0.7), np.zeros((200, 200, 3), np.uint8)
    number = 3000
    ours = RandomResizedCrop(1, (0.08, 0.5), max_attempts=1000, min_overlap=0.05)
    free = RandomResizedCrop(1, (0.08, 0.5))
    np.random.seed(0)
    near = [ours(dict(img=img, earlier_boxes=[first]))['view_box'] for _ in range(number)]
    rejected = []
    while len(rejected) < number:
        box = free(dict(img=img))['view_box']
        if intersection(box, first) >= 0.05 * np.prod(sides(box)):
            rejected.append(box)
    for a, b in zip(_features(np.array(near)), _features(np.array(rejected))):
        assert ks_distance(a, b) < 1.95 * math.sqrt(2 / number) + 0.01  # rounding at the threshold


@pytest.mark.parametrize('shape', [(100, 100), (10, 200)])
def test_any_crop_after_ten_tries(shape, monkeypatch):
    """Of a size and a place each, or of a size alone that does not fit."""
    draws = []
    uniform = np.random.uniform

    def count(*args):
        draws.append(args)
        return uniform(*args)

    monkeypatch.setattr(np.random, 'uniform', count)
    crop = RandomResizedCrop(8, (0.3, 0.5), min_overlap=0.01)
    results = dict(img=np.zeros((*shape, 3), np.uint8), view_box=(0.5, 0.0, 0.0, 1.0))
    box = crop(dict(results, earlier_boxes=[(0.5, 0.0, 1.0, 1.0)]))['view_box']  # only touches
    assert 0 <= box[2] < box[0] <= 0.5
    # in pairs, then what mmpretrain's crop draws: one pair if it fits
    assert len(draws) == (2 * 10 + 2 if shape == (100, 100) else 2 * 10 + 2 * 10)


# ---------------------------------------------------------------- MultiView


def multi_view(*pipelines, num_views=None):
    return MultiView([list(p) for p in pipelines], num_views or [1] * len(pipelines))


def test_multi_view():
    height, width = 60, 90
    x, y = centres(WHOLE, (height, width))
    x, y = np.broadcast_arrays(255 * x, 255 * y[:, None])
    img = np.stack([x, y, 0 * x], -1).round().astype(np.uint8)
    before = img.copy()
    flip = dict(type='mmdense.RandomFlip', prob=0.5)
    transform = multi_view(
        [dict(CROP, scale=32, backend='pillow'), flip], [dict(CROP, scale=16), flip],
        num_views=[2, 3],
    )  # fmt: skip
    np.random.seed(0)
    results = transform(dict(img=img, img_path='a.jpg'))
    np.testing.assert_array_equal(img, before)
    assert [view.shape[:2] for view in results['img']] == [(32, 32)] * 2 + [(16, 16)] * 3
    boxes = results['view_boxes']
    assert boxes.shape == (5, 4) and boxes.dtype == np.float64
    for view, box in zip(results['img'], boxes):
        x, y = centres(box, view.shape[:2])
        inner = np.s_[2:-2, 2:-2]
        assert np.abs(view[..., 0] - 255 * x)[inner].max() <= 3
        assert np.abs(view[..., 1] - 255 * y[:, None])[inner].max() <= 3
    assert 'earlier_boxes' not in results and len({tuple(box) for box in boxes}) == 5


def test_multi_view_of_a_crop():
    """Boxes are in the image as loaded, not in what MultiView was given."""
    results = dict(img=np.zeros((40, 40, 3), np.uint8))
    results = fixed_crop(10, 20, 20, 20, 30)(results)
    results = multi_view([], [dict(type='mmdense.RandomFlip', prob=1.0)])(results)
    assert results['view_boxes'].tolist() == [[0.5, 0.25, 1, 0.75], [1, 0.25, 0.5, 0.75]]
    assert results['view_box'] == (0.5, 0.25, 1.0, 0.75)


def test_views_know_the_earlier_ones():
    seen = []

    def look(results):
        seen.append(results['earlier_boxes'])
        return results

    results = multi_view([CROP, look], num_views=[3])(dict(img=np.zeros((30, 30, 3), np.uint8)))
    boxes = [tuple(box) for box in results['view_boxes']]
    assert seen == [(), tuple(boxes[:1]), tuple(boxes[:2])]


def test_a_view_may_write_to_its_image():
    def blacken(results):
        results['img'][:] = 0
        return results

    img = np.full((9, 9, 3), 7, np.uint8)
    views = multi_view([blacken], [])(dict(img=img))['img']
    assert [view.max() for view in views] == [0, 7]


def test_packed_and_collated():
    transform = multi_view([CROP], [CROP])
    pack = TRANSFORMS.build(dict(type='mmdense.PackInputs'))
    views = [transform(dict(img=np.zeros((30, 40, 3), np.uint8), img_path='a')) for _ in range(3)]
    collate = FUNCTIONS.get('mmdense.default_collate')
    batch = collate([pack(view) for view in views])
    assert [view.shape for view in batch['inputs']] == [(3, 3, 8, 8)] * 2
    for sample, view in zip(batch['data_samples'], views):
        np.testing.assert_array_equal(sample.view_boxes, view['view_boxes'])
        assert sample.metainfo['view_boxes'].shape == (2, 4)


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    'value', [-0.1, 1.5, math.nan, math.inf, '0.1', None, True, [0.1], 1j, np.array([0.1])]
)
def test_wrong_min_overlap(value):
    with pytest.raises(InputError, match=r'min_overlap must be in \[0, 1\], got ') as e:
        RandomResizedCrop(8, min_overlap=value)
    assert '\n' not in str(e.value)


def test_right_min_overlap():
    assert repr(RandomResizedCrop(8, min_overlap=0.5)).endswith('backend=torch, min_overlap=0.5)')
    RandomResizedCrop(8, min_overlap=np.float64(0.5))
    RandomResizedCrop(8, min_overlap=1)


class ShiftAndRotate:
    def __call__(self, results):
        return results


class Innocent(ShiftAndRotate):
    """Its name does not say what it does, its base's does."""


class Honest(ShiftAndRotate):
    keeps_view_box = True


ROTATE = dict(type='mmpretrain.Rotate', angle=30.0)


@pytest.mark.parametrize(
    'transform, culprit',
    [
        (dict(type='mmpretrain.RandomResizedCrop', scale=8), 'RandomResizedCrop'),
        (dict(type='mmpretrain.EfficientNetRandomCrop', scale=8), 'EfficientNetRandomCrop'),
        (dict(type='mmpretrain.RandomCrop', crop_size=8), 'RandomCrop'),
        (dict(type='mmpretrain.CenterCrop', crop_size=8), 'CenterCrop'),
        (dict(type='mmpretrain.EfficientNetCenterCrop', crop_size=8), 'EfficientNetCenterCrop'),
        (dict(type='mmpretrain.RandomFlip', prob=0.5), 'RandomFlip'),
        (dict(type='mmcv.Pad', size=(9, 9)), 'Pad'),
        (ROTATE, 'Rotate'),
        (dict(type='mmpretrain.Shear', magnitude=0.1), 'Shear'),
        (dict(type='mmpretrain.Translate', magnitude=0.1), 'Translate'),
        (dict(type='mmpretrain.torchvision/RandomAffine', degrees=9), 'RandomAffine'),
        (dict(type='mmpretrain.torchvision/RandomHorizontalFlip'), 'RandomHorizontalFlip'),
        (dict(type='mmpretrain.torchvision/RandAugment'), 'RandAugment'),
        (dict(type='mmpretrain.torchvision/TrivialAugmentWide'), 'TrivialAugmentWide'),
        (dict(type='mmdense.JigsawPatches'), 'JigsawPatches'),
        (dict(type='mmcv.RandomApply', transforms=[ROTATE]), 'Rotate'),
        (dict(type='mmcv.RandomApply', transforms=ROTATE), 'Rotate'),
        (dict(type='mmcv.Compose', transforms=[CROP, ROTATE]), 'Rotate'),
        (dict(type='mmcv.RandomChoice', transforms=[[CROP], [CROP, ROTATE]]), 'Rotate'),
        (
            dict(
                type='mmcv.RandomApply',
                transforms=[dict(type='mmcv.RandomChoice', transforms=[[ROTATE]])],
            ),
            'Rotate',
        ),
        (dict(type='mmpretrain.AutoAugment', policies='imagenet', _scope_='mmpretrain'), 'Rotate'),
        (
            dict(
                type='mmpretrain.RandAugment',
                policies='timm_increasing',
                _scope_='mmpretrain',  # of the policies
                num_policies=2,
                magnitude_level=9,
            ),
            'Rotate',
        ),
        (ShiftAndRotate(), 'ShiftAndRotate'),
        (Innocent(), 'Innocent'),
    ],
)
def test_what_moves_pixels_is_refused(transform, culprit):
    message = f'MultiView: pipeline 1 has {culprit}, which moves pixels without .*; use Random'
    with pytest.raises(InputError, match=message) as e:
        multi_view([CROP], [CROP, transform])
    assert '\n' not in str(e.value)


def test_what_keeps_the_frame_is_taken():
    multi_view(
        [
            dict(type='mmpretrain.ResizeEdge', scale=40),
            dict(type='mmpretrain.Resize', scale=40),
            dict(type='mmpretrain.RandomResize', scale=(40, 40), ratio_range=(1, 2)),
            CROP,
            dict(type='mmcv.RandomApply', transforms=[dict(type='mmdense.RandomFlip', prob=0.5)]),
            dict(type='mmpretrain.RandomErasing'),
            dict(type='mmpretrain.ColorJitter', brightness=0.4),
            dict(type='mmpretrain.RandomGrayscale', prob=0.2),
            dict(type='mmpretrain.Solarize', thr=128),
            dict(type='mmpretrain.torchvision/GaussianBlur', kernel_size=3),
            Honest(),
            lambda results: results,
        ]
    )


# ---------------------------------------------------------------- the configs


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Data sets of an image each, where the configs look for them."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for name in ('train2017', 'unlabeled2017', 'train'):
        (root / name).mkdir()
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((320, 240), Image.BICUBIC).save(root / name / '1.jpg')
    return str(root)


CONFIGS = [
    'pixpro_r50_coco',
    'pixpro_r50_in1k',
    'slotcon_r50_coco',
    'slotcon_r50_in1k',
    'slotcon_r50_cocoplus',
]


def load(repo, name):
    return Config.fromfile(str(repo / 'configs' / f'{name}.py'))


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_give_views_and_boxes(name, repo, photographs, mmdense_scope):
    dataloader = load(repo, name).train_dataloader
    slotcon = 'slotcon' in name
    assert dataloader.batch_size == (64 if slotcon else 128)
    dataset = DATASETS.build(dict(dataloader.dataset, data_root=photographs))
    assert len(dataset) == (2 if 'cocoplus' in name else 1)
    np.random.seed(0)
    for i in range(len(dataset)):
        packed = dataset[i]
        assert [view.dtype for view in packed['inputs']] == [torch.uint8] * 2
        assert [view.shape for view in packed['inputs']] == [(3, 224, 224)] * 2
        assert packed['data_samples'].view_boxes.shape == (2, 4)
        assert packed['data_samples'].img_path.startswith(photographs)
    for crop, *_ in dataloader.dataset.pipeline[1].transforms:
        assert crop.interpolation == ('bicubic' if slotcon else 'bilinear')


@pytest.mark.parametrize('name, near', [('byol', False), ('slotcon', True)])
def test_second_view_overlaps_the_first(name, near, repo, mmdense_scope):
    views = load(repo, f'_base_/views/{name}').train_pipeline[1]
    views.transforms = [pipeline[:2] for pipeline in views.transforms]  # crop and flip
    views.transforms[0][0].scale = views.transforms[1][0].scale = 8
    assert 'min_overlap' not in views.transforms[0][0]
    transform = TRANSFORMS.build(views)
    img = np.zeros((240, 320, 3), np.uint8)
    np.random.seed(0)
    pairs = [transform(dict(img=img))['view_boxes'] for _ in range(1000)]
    shares = np.array([intersection(a, b) / np.prod(sides(b)) for a, b in pairs])
    if near:
        assert shares.min() > 0.009  # of the area in pixels
    else:
        assert 0.02 < (shares < 0.009).mean() < 0.3
    assert 0.4 < np.mean([a[0] > a[2] for a, _ in pairs]) < 0.6
