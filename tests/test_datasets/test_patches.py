# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from mmdense.datasets import JigsawPatches
from mmdense.models import SelfSupDataPreprocessor
from mmdense.models.utils.patches import split_patches
from mmdense.registry import DATASETS, FUNCTIONS, TRANSFORMS
from mmdense.utils.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
DETCO = [
    'detco/detco_resnet50_8xb32-coslr-800e_coco',
    'detco/detco_resnet50_8xb32-coslr-200e_in1k',
    'detco/detco-aa_resnet50_8xb32-coslr-200e_in1k',
]


def places(height, width):
    """An image whose pixels hold their own column and row."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, 0 * x], -1)


def cut(strip):
    """(grid², P, P, C) patches of a strip, from left to right."""
    return np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))


def assert_uniform(counts, total):
    """Chi-square of equally likely outcomes, at most four deviations above its mean."""
    counts = np.asarray(counts).ravel()
    assert counts.sum() == total
    assert total / counts.size >= 20
    chi, df = ((counts - counts.mean()) ** 2).sum() / counts.mean(), counts.size - 1
    assert chi < df + 4 * math.sqrt(2 * df)


def load(name):
    return Config.fromfile(str(CONFIGS / f'{name}.py'))


# ---------------------------------------------------------------- cells and patches


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.data(), st.integers(0, 2**32 - 1))
def test_one_patch_inside_each_cell(grid, patch, data, seed):
    """Of any image, square or not, that the grid divides or not."""
    sides = st.integers(grid * patch, 3 * grid * patch + grid)
    height, width = data.draw(sides), data.draw(sides)
    img = places(height, width)
    before = img.copy()
    np.random.seed(seed)
    results = JigsawPatches(grid, patch)(dict(img=img, img_shape=img.shape[:2]))
    np.testing.assert_array_equal(img, before)
    strip, cells = results['img'], results['patch_cells']
    assert strip.shape == (patch, grid**2 * patch, 3) and strip.dtype == img.dtype
    assert results['img_shape'] == strip.shape[:2]
    assert sorted(cells) == list(range(grid**2))
    for cell, (x, y) in zip(cells, np.moveaxis(cut(strip)[..., :2], -1, 1)):
        # pixels that are neighbours in the image
        left, top = x[0, 0], y[0, 0]
        np.testing.assert_array_equal(x, np.tile(np.arange(left, left + patch), (patch, 1)))
        np.testing.assert_array_equal(y.T, np.tile(np.arange(top, top + patch), (patch, 1)))
        # cells lie side by side, so that no two patches overlap
        for first, index, length in ((top, cell // grid, height), (left, cell % grid, width)):
            assert index * length // grid <= first
            assert first + patch <= (index + 1) * length // grid


def test_recipe():
    """PIRL's and DetCo's: 255, 85, 64."""
    strip = JigsawPatches()(dict(img=np.zeros((255, 255, 3), np.uint8)))['img']
    assert strip.shape == (64, 576, 3) and strip.dtype == np.uint8
    assert repr(JigsawPatches()) == 'JigsawPatches(grid=3, patch_size=64)'


def test_one_cell():
    """And patches that fill their cells leave nothing to draw but the order."""
    img = places(6, 6)
    np.testing.assert_array_equal(JigsawPatches(1, 6)(dict(img=img))['img'], img)
    results = JigsawPatches(2, 3)(dict(img=img))
    for cell, patch in zip(results['patch_cells'], cut(results['img'])):
        top, left = 3 * (cell // 2), 3 * (cell % 2)
        np.testing.assert_array_equal(patch, img[top : top + 3, left : left + 3])


def draw(transform, shape, number, seed=0):
    """Cells (number, grid²) and, in the order of the cells, offsets inside them."""
    np.random.seed(seed)
    img, grid = places(*shape), transform.grid
    cells, offsets = [], []
    for _ in range(number):
        results = transform(dict(img=img))
        cells.append(results['patch_cells'])
        corner = cut(results['img'])[np.argsort(cells[-1]), 0, 0, :2]
        cell = np.arange(grid**2)
        origin = np.stack([cell % grid * (shape[1] // grid), cell // grid * (shape[0] // grid)], 1)
        offsets.append(corner - origin)
    return np.array(cells), np.array(offsets)


def test_every_order_is_equally_likely():
    number = 4000
    cells, _ = draw(JigsawPatches(2, 1), (2, 2), number)
    orders, counts = np.unique(cells, axis=0, return_counts=True)
    assert len(orders) == 24
    assert_uniform(counts, number)
    cells, _ = draw(JigsawPatches(3, 1), (3, 3), number)
    for patch in range(9):
        assert_uniform(np.bincount(cells[:, patch], minlength=9), number)
    for a, b in combinations(range(9), 2):
        pairs = np.bincount(9 * cells[:, a] + cells[:, b], minlength=81)
        apart = ~np.eye(9, dtype=bool).ravel()
        assert_uniform(pairs[apart], number)


def test_every_place_in_a_cell_is_equally_likely():
    number = 2000
    _, offsets = draw(JigsawPatches(), (255, 255), number)
    assert offsets.min() == 0 and offsets.max() == 85 - 64
    flat = 22 * offsets[..., 0] + offsets[..., 1]
    assert_uniform(np.bincount(flat.ravel(), minlength=22 * 22), 9 * number)
    for cell in range(9):
        for axis in (0, 1):
            assert_uniform(np.bincount(offsets[:, cell, axis], minlength=22), number)


def test_places_and_order_are_independent():
    """Of each other: each axis of each cell, and where the cell comes in the strip."""
    number = 3000
    cells, offsets = draw(JigsawPatches(2, 8), (20, 22), number)
    offsets = offsets.reshape(number, 8)
    for a, b in combinations(range(8), 2):
        # 10 - 8 pixels up and down, 11 - 8 to the sides
        counts = np.bincount(4 * offsets[:, a] + offsets[:, b], minlength=16).reshape(4, 4)
        assert_uniform(counts[: 4 - a % 2, : 4 - b % 2], number)
    order = np.argsort(cells, 1)
    for cell in range(4):
        counts = np.bincount(4 * order[:, cell] + offsets[:, 2 * cell], minlength=16)
        assert_uniform(counts, number)


def test_seed_reproduces():
    img = places(255, 255)
    strips = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        strips += [JigsawPatches()(dict(img=img))['img'] for _ in range(2)]
    np.testing.assert_array_equal(strips[0], strips[2])
    np.testing.assert_array_equal(strips[1], strips[3])
    assert len({strip.tobytes() for strip in strips}) == 4


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize('name', ['grid', 'patch_size'])
@pytest.mark.parametrize('value', [0, -1, 2.0, '3', None, True, (3, 3), math.nan])
def test_wrong_arguments(name, value):
    with pytest.raises(InputError, match=f'^{name} must be a whole number of at least 1, got .*$'):
        JigsawPatches(**{name: value})


@pytest.mark.parametrize(
    'grid, patch, height, width',
    [(3, 64, 255, 191), (3, 64, 191, 255), (3, 86, 255, 255), (3, 1, 2, 2), (4, 64, 255, 255)],
)
def test_patches_that_do_not_fit(grid, patch, height, width):
    message = (
        f'^JigsawPatches: an image of {width}x{height} pixels .* {grid}x{grid} cells .* '
        f'{patch}x{patch}; resize it to at least {grid * patch}x{grid * patch} .*$'
    )
    with pytest.raises(InputError, match=message):
        JigsawPatches(grid, patch)(dict(img=np.zeros((height, width, 3), np.uint8)))


# ---------------------------------------------------------------- split_patches


@pytest.mark.parametrize('n, grid, size', [(2, 3, 64), (3, 2, 5), (1, 1, 4), (0, 3, 4)])
def test_split_is_the_inverse(n, grid, size):
    number = grid**2
    patches = torch.rand(n * number, 3, size, size)
    rows = patches.reshape(n, number, 3, size, size)
    strips = torch.cat([rows[:, k] for k in range(number)], dim=3)
    for one in (strips, strips.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(split_patches(one, grid), patches)


def test_split_what_the_transform_made():
    transform = JigsawPatches(2, 32)
    batch = [transform(dict(img=np.random.rand(70, 90, 3).astype(np.float32))) for _ in range(3)]
    strips = torch.stack([torch.from_numpy(r['img']).permute(2, 0, 1) for r in batch])
    patches = split_patches(strips, grid=2)
    assert patches.shape == (12, 3, 32, 32)
    expected = np.concatenate([cut(r['img']) for r in batch])
    np.testing.assert_array_equal(patches.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(
    'shape', [(2, 3, 224, 224), (2, 3, 64, 256), (3, 64, 576), (2, 3, 576, 64)]
)
def test_no_strip(shape):
    with pytest.raises(InputError, match=f'^expected .* got {" x ".join(map(str, shape))}; .*$'):
        split_patches(torch.zeros(shape), grid=3)


# ---------------------------------------------------------------- DetCo's configs


def test_recipe_of_the_views():
    """The photometric steps of all views are those of MoCo v2, after the flip."""
    base = load('_base_/views/mocov2').view_pipeline
    config = load('detco_r50_coco')
    _, multi_view, _ = config.train_dataloader.dataset.pipeline
    assert multi_view.type == 'MultiView' and multi_view.num_views == [2, 2]
    view, patches = (_plain(pipeline) for pipeline in multi_view.transforms)
    assert view == _plain([base[0], base[4], *base[1:4]])
    assert patches[1:-1] == view[1:]
    assert patches[0] == dict(view[0], scale=255, crop_ratio_range=(0.6, 1.0))
    assert patches[-1] == dict(type='JigsawPatches', grid=3, patch_size=64)
    assert config.train_dataloader.batch_size == 32
    for name, root, prefix in (
        (DETCO[0], 'data/coco', 'train2017'),
        (DETCO[1], 'data/imagenet', 'train'),
        (DETCO[2], 'data/imagenet', 'train'),
    ):
        loader = load(name).train_dataloader
        assert (loader.dataset.data_root, loader.dataset.data_prefix) == (root, prefix)
        assert (loader.batch_size, loader.drop_last) == (32, True)


def test_aa_is_randaugment_on_the_global_view():
    plain, aa = (load(name).train_dataloader for name in DETCO[1:])
    view, patches = (_plain(t) for t in aa.dataset.pipeline[1].transforms)
    assert view.pop(3)['type'] == 'RandAugment'
    assert [view, patches] == [_plain(t) for t in plain.dataset.pipeline[1].transforms]


def _plain(pipeline):
    """Less the empty scope that MMEngine adds to what a child config reads."""
    config = Config(dict(pipeline=copy.deepcopy(pipeline))).to_dict()['pipeline']
    return [{k: v for k, v in t.items() if k != '_scope_' or v} for t in config]


@pytest.mark.parametrize('name', ['detco', 'detco_aa'])
def test_survives_a_dump(name, tmp_path):
    config = load(f'_base_/views/{name}')
    config.dump(str(tmp_path / 'config.py'))
    assert Config.fromfile(str(tmp_path / 'config.py')).to_dict() == config.to_dict()
    assert set(config) == {'view_pipeline', 'patch_pipeline', 'train_pipeline'}


def test_randaugment_keeps_size_and_type(mmdense_scope):
    """Every policy, of those that a run draws now and then."""
    augment = TRANSFORMS.build(load('_base_/views/detco_aa').view_pipeline[3])
    assert len(augment.transforms) == 15
    img = np.random.RandomState(0).randint(0, 255, (60, 70, 3), np.uint8)
    for policy in augment.transforms:
        policy.prob = 1.0
        out = policy(dict(img=img.copy()))['img']
        assert out.shape == img.shape and out.dtype == np.uint8
        assert not np.array_equal(out, img) or type(policy).__name__ in ('AutoContrast', 'Equalize')


@pytest.mark.parametrize('name', DETCO)
def test_from_files_to_the_algorithm(name, tmp_path, mmdense_scope):
    rng = np.random.RandomState(0)
    for i, shape in enumerate([(300, 400), (90, 60), (500, 120)]):  # also smaller than the crops
        img = Image.fromarray(rng.randint(0, 255, (9, 9, 3), np.uint8))
        img.resize(shape[::-1]).save(tmp_path / f'{i}.png')
    config = load(name).train_dataloader.dataset
    dataset = DATASETS.build(dict(config, data_root=str(tmp_path), data_prefix=''))
    collate = FUNCTIONS.get('mmdense.default_collate')

    def batch():
        np.random.seed(3)
        return collate([dataset[i] for i in range(3)])

    data = batch()
    shapes = [(3, 3, 224, 224)] * 2 + [(3, 3, 64, 576)] * 2
    assert [tuple(view.shape) for view in data['inputs']] == shapes
    assert {view.dtype for view in data['inputs']} == {torch.uint8}
    assert all(torch.equal(a, b) for a, b in zip(data['inputs'], batch()['inputs']))
    assert not torch.equal(*data['inputs'][:2]) and not torch.equal(*data['inputs'][2:])

    model = load('_base_/models/r50').model
    inputs = SelfSupDataPreprocessor(**model.data_preprocessor)(data)['inputs']
    assert [tuple(view.shape) for view in inputs] == shapes
    mean, std = (
        torch.tensor(model.data_preprocessor[key]).view(3, 1, 1) for key in ('mean', 'std')
    )
    for strips, raw in zip(inputs[2:], data['inputs'][2:]):
        patches = split_patches(strips, grid=3)
        assert patches.shape == (27, 3, 64, 64)
        for n in range(3):
            for k in range(9):
                rgb = raw[n, [2, 1, 0], :, 64 * k : 64 * k + 64].float()
                torch.testing.assert_close(patches[9 * n + k], (rgb - mean) / std)


def test_views_are_independent(mmdense_scope):
    """A patch set is drawn from the whole image, not from the global view's crop."""
    multi_view = load('_base_/views/detco').train_pipeline[1]
    places_only = ('RandomResizedCrop', 'RandomFlip', 'JigsawPatches')
    multi_view.transforms = [
        [step for step in pipeline if step.type.split('.')[-1] in places_only]
        for pipeline in multi_view.transforms
    ]
    assert [len(pipeline) for pipeline in multi_view.transforms] == [2, 3]
    transform = TRANSFORMS.build(multi_view)
    img, number = places(256, 256).astype(np.uint8), 150
    np.random.seed(0)
    spans, outside = [], 0  # of each view: left, top, right, bottom in pixels of the image
    for _ in range(number):
        views = transform(dict(img=img))['img']
        # x is that of the first row, y that of the first column (of every patch)
        places_of = [(view[0, :, 0], view[:, :: len(view), 1]) for view in views]
        spans.append([[x.min(), y.min(), x.max(), y.max()] for x, y in places_of])
        left, top, right, bottom = spans[-1][0]
        patches = cut(views[2])
        x, y = patches[:, 0, :, 0], patches[:, :, 0, 1]
        beside = (x.min(1) > right) | (x.max(1) < left)
        above = (y.min(1) > bottom) | (y.max(1) < top)
        outside += (beside | above).any()
    assert outside > number / 4
    spans = np.array(spans, float)
    assert (spans[:, 2:].min((0, 1)) <= 3)[:2].all() and (spans[:, 2:].max((0, 1)) >= 252)[2:].all()
    centres, sides = (spans[..., :2] + spans[..., 2:]) / 2, spans[..., 2:] - spans[..., :2]
    for a, b in combinations(range(4), 2):
        for feature in (*np.moveaxis(centres, -1, 0), *np.moveaxis(sides, -1, 0)):
            r = np.corrcoef(feature[:, a], feature[:, b])[0, 1]
            assert abs(r) < 4 / math.sqrt(number)
