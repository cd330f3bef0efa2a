# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""COCO-Stuff's published hierarchy, by the names of its labels."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmdense.datasets import CocoStuff27
from mmdense.utils.errors import DataError

# ids of labels.txt of github.com/nightrome/cocostuff that COCO has removed
REMOVED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
# of CocoStuffClasses.m of github.com/nightrome/cocostuff10k: labels whose names do not say it
EXAMPLES = {
    'person': 'person-things',
    'potted plant': 'furniture-things',
    'boat': 'vehicle-things',
    'bench': 'outdoor-things',
    'giraffe': 'animal-things',
    'suitcase': 'accessory-things',
    'tennis racket': 'sports-things',
    'bowl': 'kitchen-things',
    'cake': 'food-things',
    'cell phone': 'electronic-things',
    'refrigerator': 'appliance-things',
    'toothbrush': 'indoor-things',
    'metal': 'rawmaterial-stuff',
    'carpet': 'floor-stuff',
    'stairs': 'furniture-stuff',
    'rug': 'textile-stuff',
    'salad': 'food-stuff',
    'tent': 'building-stuff',
    'railing': 'structural-stuff',
    'straw': 'plant-stuff',
    'clouds': 'sky-stuff',
    'wood': 'solid-stuff',
    'railroad': 'ground-stuff',
    'fog': 'water-stuff',
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'list.txt').write_text('000000000139\n000000000285.jpg\n')
    for name in ('139', '285'):
        image = np.zeros((48, 64, 3), np.uint8)
        for kind, array in (('img', image), ('seg', np.full((48, 64), 255, np.uint8))):
            (tmp_path / kind).mkdir(exist_ok=True)
            ending = 'jpg' if kind == 'img' else 'png'
            Image.fromarray(array).save(tmp_path / kind / f'{name.zfill(12)}.{ending}')
    return tmp_path


def build(folder, **changes):
    prefix = dict(img_path='img', seg_map_path='seg')
    return CocoStuff27(data_root=str(folder), ann_file='list.txt', data_prefix=prefix, **changes)


def test_every_label_has_a_class(folder):
    label_map = build(folder)[0]['label_map']
    assert sorted(label_map) == list(range(182))
    classes = CocoStuff27.METAINFO['classes']
    assert len(classes) == 27 and set(label_map.values()) == set(range(27))
    things = [name for name in classes if name.endswith('-things')]
    assert classes[:12] == tuple(things) and len(things) == CocoStuff27.METAINFO['num_things']
    assert {label_map[label] < 12 for label in range(91)} == {True}
    assert {label_map[label] >= 12 for label in range(91, 182)} == {True}


def test_names_of_labels(folder, require):
    require('mmseg')
    from mmseg.datasets import COCOStuffDataset

    label_map, classes = build(folder)[0]['label_map'], CocoStuff27.METAINFO['classes']
    kept = [i - 1 for i in range(1, 183) if i not in REMOVED]
    names = dict(zip(COCOStuffDataset.METAINFO['classes'], kept))
    found = {name: classes[label_map[label]] for name, label in names.items()}
    assert len(names) == 171
    for name, kind in EXAMPLES.items():
        assert found[name] == kind, name
    for name, kind in found.items():  # wall-tile, ceiling-other, food-other, …
        start = name.split('-')[0]
        if '-' in name and f'{start}-stuff' in classes:
            assert kind == f'{start}-stuff', name
    assert found['desk-stuff'] == found['mirror-stuff'] == found['door-stuff'] == 'furniture-stuff'


def test_images_and_labels(folder):
    first, second = (build(folder).get_data_info(i) for i in range(2))
    assert first['img_path'] == str(folder / 'img' / '000000000139.jpg')
    assert second['img_path'] == str(folder / 'img' / '000000000285.jpg')
    assert second['seg_map_path'] == str(folder / 'seg' / '000000000285.png')


def test_a_missing_list_says_so(folder):
    (folder / 'list.txt').unlink()
    with pytest.raises(DataError, match="needs PiCIE's list of curated images"):
        build(folder)


def test_the_recipes_pipeline(folder, repo, require):
    """Short side to 320 px, the central square, labels by the nearest, in 27 classes."""
    require('mmseg')
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 182, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    labels[:8, 16:24] = 255
    Image.fromarray(labels).save(folder / 'seg' / '000000000139.png')
    cfg = Config.fromfile(str(repo / 'configs/_base_/datasets/coco-stuff27.py'))
    dataset = dict(cfg.test_dataloader.dataset, data_root=str(folder), ann_file='list.txt')
    dataset['data_prefix'] = dict(img_path='img', seg_map_path='seg')
    with DefaultScope.overwrite_default_scope('mmdense'):
        data = DATASETS.build(dict(dataset, type='mmdense.CocoStuff27'))
        packed = data[0]
    assert packed['inputs'].shape == (3, 320, 320)
    true = packed['data_samples'].gt_sem_seg.data[0].numpy()
    label_map = data.get_data_info(0)['label_map']
    expected = np.vectorize(lambda label: label_map.get(label, 255))(labels)
    # 48 rows to 320, and 427 columns of which the central 320 are cut
    rows = ((np.arange(320) + 0.5) * 48 / 320).astype(int)
    columns = ((np.arange(320) + 0.5 + round((427 - 320) / 2)) * 64 / 427).astype(int)
    same = true == expected[rows][:, columns]
    assert same.mean() > 0.97 and (true == 255).any()
