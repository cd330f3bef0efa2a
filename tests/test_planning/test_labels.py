# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Labelled images in the layouts of COCO, Pascal VOC and mmseg."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmdense import planning
from mmdense.registry import DATASETS
from mmdense.utils.errors import DataError


def test_real_ones(data_root):
    """bccd and coco (boxes), camvid (maps; void is one of its numbers)."""
    found = planning.survey_labels(str(data_root / 'bccd'))
    ours = Config.fromfile('configs/_base_/evaluation_bccd.py').default_hooks.evaluation.data
    ours.data_root = found['data_root']
    a, b = DATASETS.build(found), DATASETS.build(ours)
    assert (a.train, a.test, set(a.classes)) == (b.train, b.test, set(b.classes))
    coco = planning.survey_labels(str(data_root / 'coco/annotations/instances_val2017.json'))
    built = DATASETS.build(coco)
    assert len(built.train) == pytest.approx(3 * len(built.test), abs=3)
    assert all(built.read(image)[0].ndim == 3 for image in built.train[:2])


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
    found = planning.survey_labels(str(tmp_path))
    assert found['num_classes'] == 4 and found['img_suffix'] == '.png'
    assert ('test' in found) == (not val)
    assert len(DATASETS.build(found).test) == (4 if val else 1)
    (tmp_path / 'ann_dir' / 'train' / 'train2.png').unlink()
    with pytest.raises(DataError, match='1 of 4 images have no label map'):
        planning.survey_labels(str(tmp_path))


def test_what_it_is_not(tmp_path):
    with pytest.raises(DataError, match='is no COCO json with boxes, nor a folder with JPEG'):
        planning.survey_labels(str(tmp_path))
