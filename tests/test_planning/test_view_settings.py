# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Views of several sizes and sets of patches: known by the types of the transforms."""

import pytest
from mmengine.config import Config
from tiny_algorithms import tiny_form

from mmdense.apis import planning
from mmdense.apis.planning import Images, Machine, Network, Options
from mmdense.apis.planning.view_settings import (
    find_step,
    read_views,
    scale_views,
    size_config,
    trained_views,
)
from mmdense.models.selfsup import Views
from mmdense.utils.errors import InputError

EXAMPLE = tiny_form()

CPU = Machine('cpu', '', 0, 16 << 30, 8, '')


def crop(scale, low, high, kind='RandomResizedCrop'):
    return dict(type=kind, scale=scale, crop_ratio_range=(low, high))


BLUR = dict(type='mmdense.GaussianBlur', sigma=(0.1, 2.0), prob=0.5)
LARGE = [crop(224, 0.14, 1.0), dict(type='RandomFlip', prob=0.5), BLUR]
SMALL = [dict(type='RandomFlip', prob=0.5), crop(96, 0.05, 0.14, 'mmdense.RandomResizedCrop')]
# SwAV's multi-crop: 2 views of 224 px and 6 of 96; here the small ones flip first, and their blur
# is inside another transform
MULTI_CROP = [
    dict(type='LoadImage'),
    dict(
        type='MultiView',
        num_views=[2, 6],
        transforms=[LARGE, [*SMALL, dict(type='RandomApply', prob=0.5, transforms=[BLUR])]],
    ),
    dict(type='PackInputs'),
]


def settings(size, side=480, pipeline=MULTI_CROP):
    recipe = planning.read_recipe(EXAMPLE.method)
    recipe = Config(dict(recipe.to_dict(), train_pipeline=pipeline))
    recipe.train_dataloader.dataset.pipeline = pipeline
    images = Images(dict(data_root='/images', data_prefix=''), 3000, side)
    network = Network({}, 2048, 28_000_000, 86_000_000)
    return planning.derive_settings(images, CPU, network, recipe, Options(size=size))


def changes(rows):
    return {k: v for row in rows for k, v in row.config.items() if k.startswith('pipeline')}


def test_groups():
    large, small = read_views(MULTI_CROP)
    assert (large.views, large.size, large.crop_ratio_range) == (2, 224, (0.14, 1.0))
    assert (small.views, small.size, small.crop_ratio_range) == (6, 96, (0.05, 0.14))
    assert large.crop.place == 'pipeline.1.transforms.0.0'
    assert small.crop.place == 'pipeline.1.transforms.1.1'
    assert [b.place for b in small.blurs] == ['pipeline.1.transforms.1.2.transforms.0']
    assert find_step(MULTI_CROP, 'LoadImage').place == 'pipeline.0'


@pytest.mark.parametrize(
    'size, small', [(224, 96), (192, 96), (160, 64), (128, 64), (96, 32), (64, 32), (40, 32)]
)
def test_sizes_keep_their_ratio(size, small):
    """A multiple of 32, at least 32, never above the largest."""
    groups = read_views(MULTI_CROP)
    assert [side for _, side in scale_views(groups, size)] == [size, small]
    rows = settings(size)
    (row,) = [row for row in rows if row.name == 'view size']
    assert row.value == f'{size} + {small} px'
    want = {'pipeline.1.transforms.0.0.scale': size, 'pipeline.1.transforms.1.1.scale': small}
    usual = {'pipeline.1.transforms.0.0.scale': 224, 'pipeline.1.transforms.1.1.scale': 96}
    assert row.config == {k: v for k, v in want.items() if usual[k] != v}


def test_crops_and_blur_of_small_images():
    """The small views stay parts of an image; each view is blurred in its own proportion."""
    new = changes(settings(None, side=100))  # 96 px
    assert new == {
        'pipeline.1.transforms.0.0.scale': 96,
        'pipeline.1.transforms.1.1.scale': 32,
        'pipeline.1.transforms.0.0.crop_ratio_range': (0.2, 1.0),
        'pipeline.1.transforms.0.2.sigma': (0.0429, 0.857),
        'pipeline.1.transforms.1.2.transforms.0.sigma': (0.0333, 0.667),
    }
    rows = {row.name: row.value for row in settings(None, side=100)}
    assert rows['view size'] == '96 + 32 px' and rows['blur'] == 'σ ≤ 0.86 px'
    assert changes(settings(None)) == {}


def test_the_config_has_the_sizes():
    rows = settings(96)
    text = planning.config_text(f'{EXAMPLE.method}/{EXAMPLE.recipe}.py', rows, '/work', 'x')
    text = text.replace('_base_.train_pipeline', repr(MULTI_CROP))
    cfg = Config.fromstring(text, '.py')
    large, small = read_views(cfg.train_dataloader.dataset.pipeline)
    assert (large.size, small.size) == (96, 32)
    assert small.blurs[0].config['sigma'] == (0.0333, 0.667)


def test_views_that_get_gradients():
    """By their area: six of 96 px are as much as 1.1 of 224."""
    groups, views = read_views(MULTI_CROP), Views(groups=(2, 6))
    assert trained_views(groups, views) == pytest.approx(2 + 6 * (96 / 224) ** 2)
    assert trained_views(groups, views._replace(trained=(2, 0))) == 2
    # not the algorithm's usual recipe: all of them
    assert trained_views(groups, Views()) == pytest.approx(2 + 6 * (96 / 224) ** 2)
    recipes = {
        m: planning.read_recipe(m).train_pipeline for m in (EXAMPLE.method, 'pixpro', 'detco')
    }
    recipes = {m: read_views(pipeline) for m, pipeline in recipes.items()}
    assert trained_views(recipes[EXAMPLE.method], Views(trained=(1,))) == 1
    assert trained_views(recipes['pixpro'], Views()) == 2
    detco = Views(groups=(2, 2), trained=(1, 1), patches=True)
    assert trained_views(recipes['detco'], detco) == 1 + 9 * (64 / 224) ** 2


@pytest.mark.parametrize('size, patch', [(224, 64), (192, 54), (128, 36), (96, 32)])
def test_patches_are_known_by_their_transform(size, patch):
    """Wherever it is: 2/7 of a view, cut from 85/64 of that."""
    jigsaw = dict(type='JigsawPatches', grid=3, patch_size=64)
    patches = [dict(type='RandomFlip'), crop(255, 0.6, 1.0), BLUR, jigsaw]
    multi = dict(type='MultiView', num_views=[1, 1], transforms=[patches, LARGE])
    config = size_config(read_views([dict(type='LoadImage'), multi]), size)
    assert config == {
        'pipeline.1.transforms.1.0.scale': size,
        'pipeline.1.transforms.0.1.scale': 3 * (85 * patch // 64),
        'pipeline.1.transforms.0.3.patch_size': patch,
    }


def test_one_view_without_multi_view():
    pipeline = [dict(type='LoadImage'), crop(224, 0.2, 1.0), dict(type='PackInputs')]
    (group,) = read_views(pipeline)
    assert (group.views, group.size, group.crop.place) == (1, 224, 'pipeline.1')
    assert changes(settings(96, pipeline=pipeline)) == {'pipeline.1.scale': 96}


def test_a_pipeline_without_a_size():
    with pytest.raises(InputError, match='need a RandomResizedCrop with a scale, got Resize'):
        read_views([dict(type='MultiView', num_views=2, transforms=[[dict(type='Resize')]])])
