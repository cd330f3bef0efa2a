# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Proposals: from files and at random, and from a file to a region's vector in a mirrored view."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmdense.datasets import LoadProposals, ResumableSampler, UnlabeledDataset, default_collate
from mmdense.datasets.transforms.proposals import ProposalTable
from mmdense.models import SelfSupDataPreprocessor
from mmdense.models.layers import pool_boxes, stack_proposals
from mmdense.models.utils import view_boxes
from mmdense.utils.errors import DataError, InputError

BOXES = {
    'a/1.jpg': [[0.0, 0.0, 0.5, 0.25], [0.25, 0.5, 1.0, 1.0], [0.1, 0.2, 0.3, 0.4]],
    'a/2.jpg': [],
    'b.jpg': [[-0.25, 0.5, 0.5, 1.5], [0.5, 0.5, 0.5, 0.75], [0.75, 0.5, 1.0, 0.75]],
}
CUT = {**BOXES, 'b.jpg': [[0, 0.5, 0.5, 1], [0.75, 0.5, 1, 0.75]]}
IDS = {'a/1.jpg': [0, 1, 2], 'a/2.jpg': [], 'b.jpg': [0, 2]}
SIZE = (80, 40)  # width and height


def save_json(path, boxes=BOXES):
    path.write_text(json.dumps(boxes))


def save_scored_json(path):
    content = {
        name: dict(boxes=boxes, scores=[0.5 + i for i in range(len(boxes))])
        for name, boxes in BOXES.items()
    }
    path.write_text(json.dumps(content))


def save_coco(path, scored=False):
    images, annotations = [], []
    for i, (name, boxes) in enumerate(BOXES.items()):
        images.append(dict(id=100 - i, file_name=name, width=SIZE[0], height=SIZE[1]))
        for j, (x0, y0, x1, y1) in enumerate(boxes):
            box = [x0 * SIZE[0], y0 * SIZE[1], (x1 - x0) * SIZE[0], (y1 - y0) * SIZE[1]]
            one = dict(id=len(annotations), image_id=100 - i, bbox=box, category_id=1)
            annotations.append(dict(one, score=0.5 + j) if scored else one)
    annotations.append(dict(id=99, image_id=100, bbox=[0, 0, 9, 9], iscrowd=1))
    annotations.sort(key=lambda one: -one['image_id'] % 7)  # images are mixed, an image's boxes not
    path.write_text(json.dumps(dict(images=images, annotations=annotations)))


def save_npz(path, pixels=False, scored=False, **more):
    boxes = np.concatenate([np.reshape(b, (-1, 4)) for b in BOXES.values()])
    counts = [len(b) for b in BOXES.values()]
    arrays = dict(names=list(BOXES), counts=counts, boxes=boxes.astype(np.float32))
    if pixels:
        boxes = boxes * np.tile(SIZE, 2)
        arrays.update(boxes=boxes.round().astype(np.int16), sizes=[SIZE] * len(BOXES))
    if scored:
        arrays['scores'] = np.concatenate([0.5 + np.arange(n) for n in counts])
    np.savez(str(path), **dict(arrays, **more))


def load(path, name, root='', **kwargs):
    return LoadProposals(str(path), data_root=str(root), **kwargs)(dict(img_path=name))


FORMATS = {
    'plain.json': save_json,
    'coco.json': save_coco,
    'fractions.npz': save_npz,
    'pixels.npz': lambda path: save_npz(path, pixels=True),
}
SCORED = {
    'plain.json': save_scored_json,
    'coco.json': lambda path: save_coco(path, scored=True),
    'fractions.npz': lambda path: save_npz(path, scored=True),
}


@pytest.mark.parametrize('name', FORMATS)
def test_formats(tmp_path, name):
    FORMATS[name](tmp_path / name)
    transform = LoadProposals(str(tmp_path / name), data_root='data/coco')
    for image, boxes in CUT.items():
        results = transform(dict(img_path=f'data/coco/./{image}', img='untouched'))
        assert results['img'] == 'untouched' and 'proposal_scores' not in results
        assert results['proposals'].dtype == np.float32 and results['proposals'].shape[1:] == (4,)
        expected = np.reshape(boxes, (-1, 4)).astype(np.float32)
        np.testing.assert_allclose(results['proposals'], expected, atol=1e-6)
        assert results['proposal_ids'].tolist() == IDS[image]
    again = pickle.loads(pickle.dumps(transform))  # as spawned workers get it
    np.testing.assert_array_equal(again(dict(img_path='data/coco/b.jpg'))['proposal_ids'], [0, 2])


@pytest.mark.parametrize('name', SCORED)
def test_scores(tmp_path, name):
    SCORED[name](tmp_path / name)
    for image, ids in IDS.items():
        results = load(tmp_path / name, image)
        assert results['proposal_scores'].dtype == np.float32
        assert results['proposal_scores'].tolist() == [0.5 + i for i in ids]


def test_at_most(tmp_path):
    save_json(tmp_path / 'x.json', {'x.jpg': [[0, 0, (i + 1) / 20, 1] for i in range(20)]})
    assert load(tmp_path / 'x.json', 'x.jpg', max_num=50)['proposal_ids'].tolist() == [*range(20)]
    assert load(tmp_path / 'x.json', 'x.jpg', max_num=5)['proposal_ids'].tolist() == [*range(5)]
    transform = LoadProposals(str(tmp_path / 'x.json'), max_num=5, shuffle=True)
    drawn = set()
    for _ in range(200):
        results = transform(dict(img_path='x.jpg'))
        ids = results['proposal_ids'].tolist()
        assert len(ids) == 5 and ids == sorted(set(ids))
        np.testing.assert_allclose(results['proposals'][:, 2], (np.array(ids) + 1) / 20, rtol=1e-6)
        drawn.update(ids)
    assert drawn == set(range(20))


def test_several_lists_of_an_image(tmp_path):
    """One of them each time, equally likely: selective search gives another order every time."""
    boxes = [[0, 0, 0.5, 1], [0, 0, 0.25, 1], [0, 0, 0.125, 1], [0, 0, 1, 1]]
    np.savez(
        str(tmp_path / 'x.npz'), names=['x.jpg', 'y.jpg', 'x.jpg', 'x.jpg'], counts=[1, 1, 2, 0],
        boxes=np.float32([boxes[0], boxes[3], boxes[1], boxes[2]]),
    )  # fmt: skip
    transform = LoadProposals(str(tmp_path / 'x.npz'))
    counts = [0, 0, 0]
    for _ in range(600):
        found = transform(dict(img_path='x.jpg'))['proposals'].tolist()
        counts[[boxes[:1], boxes[1:3], []].index(found)] += 1
    assert min(counts) > 150
    assert transform(dict(img_path='y.jpg'))['proposals'].tolist() == boxes[3:]


def test_random_boxes_are_up_detrs():
    height, width = 30, 50
    transform = LoadProposals('random', max_num=5000)
    results = transform(dict(img_path='x.jpg', img_shape=(height, width)))
    corners = results['proposals'].astype(np.float64) * [width, height, width, height]
    np.testing.assert_allclose(corners, corners.round(), atol=1e-4)
    left, top, right, bottom = corners.round().astype(int).T
    assert (set(right - left), set(bottom - top)) == (set(range(8, 43)), set(range(8, 23)))
    # the place is uniform on 0 … W − w − 1, whatever the width is
    for start, side, whole in ((left, right - left, width), (top, bottom - top, height)):
        share = start / (whole - side - 1)
        assert start.min() == 0 and (start < whole - side).all() and share.max() == 1
        assert abs(share.mean() - 0.5) < 0.02
        expected = len(side) / (whole - 15)
        assert np.abs(np.bincount(side)[8:] - expected).max() < 0.4 * expected
    assert results['proposal_ids'].tolist() == list(range(5000))
    small = LoadProposals('random', max_num=3)
    assert len(small(dict(img_path='x.jpg', img_shape=(16, 16)))['proposals']) == 3


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(source='x.txt'), "source must be 'grid', 'random', a .json or a .npz, got x.txt"),
        (dict(source='random'), 'max_num must be a whole number of at least 1, got None'),
        (dict(source='random', max_num=0), 'max_num must be a whole number'),
        (dict(source='random', max_num=3, min_size=0), 'min_size must be a whole number'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        LoadProposals(**kwargs)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('x.json', '{', 'cannot read the proposals .*x.json: JSONDecodeError'),
        ('x.json', '[1]', "cannot read the proposals .*x.json: AttributeError: 'list'"),
        ('x.json', '{}', 'x.json holds no list of proposals'),
        ('x.json', '{"a.jpg": [[0, 1, 2]]}', 'cannot read the proposals .*x.json: ValueError'),
        ('x.json', '{"a.jpg": [[0, 0, 30, 40]]}', 'boxes must be fractions of the image, got 40.0'),
        ('x.json', '{"a.jpg": [[0, 0, NaN, 1]]}', 'boxes must be finite'),
        ('x.json', '{"a.jpg": {"boxes": [[0, 0, 1, 1]], "scores": []}}', 'scores must be numbers'),
        ('x.json', '{"images": [], "annotations": []}', 'holds no list'),
        (
            'x.json',
            '{"images": [{"id": 1, "file_name": "a", "width": 2, "height": 2}], '
            '"annotations": [{"image_id": 3, "bbox": [0, 0, 1, 1]}]}',
            'cannot read the proposals .*x.json: KeyError: 3',
        ),
        ('x.npz', 'no zip', 'cannot read the proposals .*x.npz: '),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as e:
        LoadProposals(str(tmp_path / name))
    assert '\n' not in str(e.value)


def test_wrong_arrays(tmp_path):
    for wrong, message in (
        (dict(counts=[1, 2, 4]), r'boxes must be numbers of shape \(7, 4\), got'),
        (dict(scores=['a'] * 6), r'scores must be numbers of shape \(6,\), got'),
        (dict(sizes=[[0, 1]] * 3), 'sizes above 0'),
        (
            dict(boxes=np.array([object()])),
            'cannot read the proposals .*: ValueError: Object arrays',
        ),
    ):
        save_npz(tmp_path / 'x.npz', **wrong)
        with pytest.raises(DataError, match=message):
            LoadProposals(str(tmp_path / 'x.npz'))
    np.savez(str(tmp_path / 'y.npz'), boxes=np.zeros((1, 4)))
    with pytest.raises(DataError, match='cannot read the proposals .*y.npz: KeyError'):
        LoadProposals(str(tmp_path / 'y.npz'))
    with pytest.raises(DataError, match='cannot read the proposals none.json: No such file'):
        LoadProposals('none.json')


def test_an_image_without_an_entry(tmp_path):
    save_json(tmp_path / 'x.json')
    with pytest.raises(
        DataError, match='no proposals of 1.jpg: it names 3 lists, the first for a/1'
    ):
        load(tmp_path / 'x.json', 'data/a/1.jpg', root='data/a')
    with pytest.raises(DataError, match="image data/1.jpg is not below data_root='data/a'"):
        load(tmp_path / 'x.json', 'data/1.jpg', root='data/a')


# ---------------------------------------------------------------- through the whole way of an image


SCENE, SIDE = (96, 64), 32  # width and height


@pytest.fixture
def folder(tmp_path):
    """Images of one colour, grey level 10·i, with a bright box; and the boxes' file."""
    boxes = {}
    rng = np.random.RandomState(0)
    for i in range(8):
        img = np.full((SCENE[1], SCENE[0], 3), 10 * i, np.uint8)
        low = rng.randint(4, 12, 2) * 4
        (left, top), (w, h) = low, (24, 16)
        img[top : top + h, left : left + w] = 200 + i
        Image.fromarray(img).save(str(tmp_path / f'{i}.png'))
        box = np.divide([left, top, left + w, top + h], [*SCENE, *SCENE]).tolist()
        boxes[f'{i}.png'] = [box] * (i % 3)
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    return tmp_path


def make_dataset(folder, after_views=False, **kwargs):
    views = [
        dict(type='RandomResizedCrop', scale=SIDE, crop_ratio_range=(0.2, 1.0)),
        dict(type='RandomFlip', prob=[0.3, 0.3], direction=['horizontal', 'vertical']),
        dict(type='ColorJitter', brightness=0.2, prob=0.0),
    ]
    pipeline = [
        dict(type='LoadImage'),
        dict(type='LoadProposals', data_root=str(folder), **kwargs),
        dict(type='MultiView', transforms=[views], num_views=[2], device_augment=True),
        dict(type='PackInputs'),
    ]
    if after_views:
        pipeline[1:3] = pipeline[2:0:-1]
    with DefaultScope.overwrite_default_scope('mmdense'):
        return UnlabeledDataset(data_root=folder, pipeline=pipeline)


def batches(dataset, workers, skip=0, epochs=2):
    sampler = ResumableSampler(dataset, shuffle=True, seed=3)
    sampler.start_at(skip)
    loader = DataLoader(
        dataset, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=default_collate
    )
    preprocessor = SelfSupDataPreprocessor()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            yield preprocessor(batch, training=True)


@pytest.mark.parametrize('workers, after_views', [(0, False), (2, False), (0, True)])
def test_from_a_file_to_a_region(folder, workers, after_views):
    """A region pooled from a view's own pixels is the bright box, wherever crop and flip put it."""
    dataset = make_dataset(folder, after_views, source=str(folder / 'boxes.json'))
    flipped = visible = 0
    for batch in batches(dataset, workers):
        samples = batch['data_samples']
        assert [len(sample.proposals) for sample in samples] == [
            int(os.path.basename(sample.img_path)[0]) % 3 for sample in samples
        ]
        boxes, exists = stack_proposals(samples, batch['inputs'][0])
        for pixels, view in zip(batch['inputs'], view_boxes(samples, 2, boxes)):
            regions, valid = pool_boxes(pixels, boxes, view, exists, min_visible=0.3)
            assert not (valid & ~exists).any()
            flipped += int((view[:, 0] > view[:, 2]).sum() + (view[:, 1] > view[:, 3]).sum())
            visible += int(valid.sum())
            for n, sample in enumerate(samples):
                number = int(os.path.basename(sample.img_path)[0])
                # borders are blurred by the resize: most of the box is of its own colour
                found = regions[n, valid[n]]
                assert ((found > 0.75 * (200 + number)) & (found <= 201 + number)).all()
    assert flipped > 3 and visible > 10


@pytest.mark.parametrize('source', ['file', 'random'])
def test_workers_and_resume_draw_the_same(folder, source):
    kwargs = dict(source=str(folder / 'boxes.json'), max_num=1, shuffle=True)
    if source == 'random':
        kwargs = dict(source='random', max_num=3)
    dataset = make_dataset(folder, **kwargs)

    def content(workers, **more):
        return [
            (sample.img_path, sample.proposals.tolist(), sample.proposal_ids.tolist(), image.sum())
            for batch in batches(dataset, workers, **more)
            for sample, image in zip(batch['data_samples'], batch['inputs'][0])
        ]

    straight = content(0)
    assert len(straight) == 16 and straight[:8] != straight[8:]
    assert content(2) == straight
    assert content(2, skip=4) == straight[4:]
    if source == 'random':
        boxes = {str(found) for _, found, _, _ in straight}
        assert len(boxes) == 16  # another draw each time
        for sample in next(batches(dataset, 0))['data_samples']:
            assert sample.proposals.dtype == torch.float32 and sample.proposals.shape == (3, 4)


def test_random_boxes_take_another_image_for_one_too_small(folder):
    Image.new('RGB', (15, 40)).save(str(folder / '0.png'))
    dataset = make_dataset(folder, after_views=True, source='random', max_num=2)
    sample = dataset[0]['data_samples']
    ((path, reason),) = sample.unreadable
    assert path.endswith('0.png') and '15 × 40 pixels are too few for random proposals' in reason
    assert sample.proposals.shape == (2, 4)


def test_scores_and_ids_are_packed(folder):
    names = [f'{i}.png' for i in range(8)]
    boxes = np.float32([[0, 0, 0, 0], [0, 0, 1, 1]] * 8)
    scores = np.arange(16) / 16
    np.savez(str(folder / 'x.npz'), names=names, counts=[2] * 8, boxes=boxes, scores=scores)
    sample = make_dataset(folder, source=str(folder / 'x.npz'))[5]['data_samples']
    assert sample.proposal_scores.tolist() == [11 / 16] and sample.proposal_ids.tolist() == [1]
    moved = sample.to('meta')  # they are data and not meta information
    assert moved.proposals.device.type == moved.proposal_ids.device.type == 'meta'


def test_the_grid():
    """Windows of a half and of a third of the sides, at steps of half a window."""
    found = LoadProposals('grid').transform(dict(img_path='x.jpg'))
    boxes = found['proposals']
    assert boxes.dtype == np.float32 and found['proposal_ids'].tolist() == list(range(34))
    assert boxes.min() == 0 and boxes.max() == 1
    sides = boxes[:, 2:] - boxes[:, :2]
    for side, number, step in ((1 / 2, 9, 1 / 4), (1 / 3, 25, 1 / 6)):
        same = np.isclose(sides, side).all(axis=1)
        assert same.sum() == number
        places = boxes[same, :2] / step
        np.testing.assert_allclose(places, places.round(), atol=1e-5)
        assert len(np.unique(places.round(), axis=0)) == number
    few = LoadProposals('grid', max_num=9).transform(dict(img_path='x.jpg'))
    np.testing.assert_array_equal(few['proposals'], boxes[:9])


@pytest.mark.parametrize('write, mapped', [(np.savez, True), (np.savez_compressed, False)])
def test_an_uncompressed_file_is_mapped(tmp_path, write, mapped):
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 90, (50, 2, 2)), axis=1).reshape(50, 4).astype(np.int16)
    path = str(tmp_path / 'x.npz')
    names, counts = ['a.jpg', 'b/c.jpg', 'd.jpg'], np.array([20, 0, 30])
    write(path, names=names, counts=counts, boxes=boxes, sizes=np.full((3, 2), 100))
    table = ProposalTable.read(path)
    assert isinstance(table._boxes, np.memmap) == mapped
    np.testing.assert_allclose(table.find('d.jpg').boxes, boxes[20:] / 100, rtol=1e-6)
    assert table.find('b/c.jpg').boxes.shape == (0, 4)
