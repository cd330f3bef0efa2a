# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Labelled images in the layouts of COCO, Pascal VOC and mmseg."""

import inspect

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmdense.apis import planning
from mmdense.apis.planning import labels
from mmdense.engine import DenseEvaluationHook
from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError, InputError


def test_real_ones(data_root):
    """bccd and coco (boxes), camvid (maps; void is one of its numbers)."""
    found, about = planning.survey_labels(str(data_root / 'bccd'))
    assert about == 'boxes of Platelets, RBC, WBC; 50 of 205 images, tested on 50 of 87'
    ours = Config.fromfile('configs/_base_/evaluation_bccd.py').default_hooks.evaluation.data
    ours.data_root = found['data_root']
    a, b = DATASETS.build(found), DATASETS.build(ours)
    assert (a.train, a.test, set(a.classes)) == (b.train, b.test, set(b.classes))
    coco, about = planning.survey_labels(str(data_root / 'coco/annotations/instances_val2017.json'))
    built = DATASETS.build(coco)
    assert len(built.train) == pytest.approx(3 * len(built.test), abs=3)
    assert all(built.read(image)[0].ndim == 3 for image in built.train[:2])
    found, about = planning.survey_labels(str(data_root / 'camvid'), ignore_label=11)
    ours = Config.fromfile('configs/_base_/evaluation_camvid.py').default_hooks.evaluation.data
    ours.data_root = found['data_root']
    a, b = DATASETS.build(found), DATASETS.build(ours)
    assert vars(a) == vars(b)
    assert about == '11 classes, 11 does not count; 50 of 367 images, tested on 50 of 101'
    assert planning.survey_labels(str(data_root / 'camvid')).about.startswith('12 classes, 255')


@pytest.mark.parametrize('val', [True, False])
def test_maps(tmp_path, val):
    names = ['train', 'val'] if val else ['train']
    for split in names:
        for folder, suffix in (('img_dir', '.png'), ('ann_dir', '.png')):
            (tmp_path / folder / split).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((32, 32) if folder == 'ann_dir' else (32, 32, 3), i, np.uint8)
                pixels[:4] = 255
                Image.fromarray(pixels).save(tmp_path / folder / split / f'{split}{i}{suffix}')
    found, about = planning.survey_labels(str(tmp_path))
    assert about == (
        f'4 classes, 255 does not count; {4 if val else 3} images, tested on {4 if val else 1}'
    )
    assert found['num_classes'] == 4 and found['img_suffix'] == '.png'
    assert ('test' in found) == (not val)
    assert len(DATASETS.build(found).test) == (4 if val else 1)
    (tmp_path / 'ann_dir' / 'train' / 'train2.png').unlink()
    with pytest.raises(DataError, match='1 of 4 images have no label map'):
        planning.survey_labels(str(tmp_path))


def test_ignore_label(tmp_path):
    for folder in ('img_dir', 'ann_dir'):
        (tmp_path / folder / 'train').mkdir(parents=True)
    maps = tmp_path / 'ann_dir' / 'train'
    for i in range(4):
        Image.new('RGB', (32, 32)).save(tmp_path / f'img_dir/train/{i}.jpg')
        Image.fromarray(np.full((32, 32), i, np.uint8)).save(maps / f'{i}.png')
    found = planning.survey_labels(str(tmp_path), ignore_label=0).data  # not the largest
    assert (found['num_classes'], found['ignore_index']) == (4, 0)
    with pytest.raises(DataError, match='--ignore-label 7: no label map of .* leave it out'):
        planning.survey_labels(str(tmp_path), ignore_label=7)
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(maps / '2.png')
    with pytest.raises(DataError, match='2.png has 255 next to --ignore-label 3: one number'):
        planning.survey_labels(str(tmp_path), ignore_label=3)
    Image.new('RGB', (32, 32)).save(maps / '2.png')
    with pytest.raises(DataError, match='2.png is 32×32×3: it needs a class number for each'):
        planning.survey_labels(str(tmp_path))
    (maps / '2.png').write_bytes(b'x')
    with pytest.raises(DataError, match='cannot read label map .*2.png'):
        planning.survey_labels(str(tmp_path))
    with pytest.raises(InputError, match='--ignore-label 3 is for the label maps of --labels'):
        planning.make_plan(str(tmp_path / 'img_dir'), planning.Options(ignore_label=3))


def test_ignore_label_of_boxes(data_root):
    with pytest.raises(InputError, match='--ignore-label 3 is for label maps, .*bccd has boxes'):
        planning.survey_labels(str(data_root / 'bccd'), ignore_label=3)


def test_how_many_are_used():
    usual = inspect.signature(DenseEvaluationHook).parameters['max_images'].default
    assert usual == labels.MOST


def test_what_it_is_not(tmp_path):
    with pytest.raises(DataError, match='is no COCO json with boxes, nor a folder with JPEG'):
        planning.survey_labels(str(tmp_path))
