# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from mmdense.evaluation import (
    LabelledBoxes,
    LabelledMaps,
    LinearProbe,
    NearestNeighbours,
    evaluate_features,
)
from mmdense.evaluation.labelled_data import _background, count_pairs
from mmdense.models import SelfSupDataPreprocessor
from mmdense.utils.errors import DataError, InputError

# of class 0, 1, 2 and void, 3
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], dtype=np.uint8)


class Seen(nn.Module):
    """A backbone whose only map is the image, some cells smaller."""

    def __init__(self, stride=1):
        super().__init__()
        self.stages = nn.ModuleList([nn.AvgPool2d(stride)])
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.stages[0](x)


@pytest.fixture
def plain():
    """Pixels as they are, in [0, 1]."""
    return SelfSupDataPreprocessor(mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True)


@pytest.fixture
def maps(tmp_path):
    """Eight training and four test images in blocks of their classes' colours, and the arguments
    of their data set."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 4)):
        for kind in ('img_dir', 'ann_dir'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = rng.integers(0, 4, (6, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            Image.fromarray(COLOURS[labels]).save(tmp_path / f'img_dir/{split}/{split}{i}.png')
            Image.fromarray(labels).save(tmp_path / f'ann_dir/{split}/{split}{i}.png')
    return dict(data_root=str(tmp_path), num_classes=3, ignore_index=3, img_suffix='.png')


@pytest.mark.parametrize('stride', [1, 8])
def test_features_that_are_the_labels_are_perfect(maps, plain, stride):
    found = evaluate_features(Seen(stride), plain, LabelledMaps(**maps))
    assert set(found) == {f'{m}_{k}' for m in ('knn', 'linear') for k in ('mIoU', 'aAcc')}
    if stride == 1:
        assert all(value > 99.9 for value in found.values()), found
    else:  # of stride 8, the borders between cells are a guess
        assert all(70 < value < 100 for value in found.values()), found


def test_features_that_say_nothing_are_chance(maps, plain):
    class Noise(Seen):
        def forward(self, x):
            rng = torch.Generator().manual_seed(int(1e3 * x.mean()))
            return self.stages[0](torch.randn(1, 3, *x.shape[2:], generator=rng))

    found = evaluate_features(Noise(8), plain, LabelledMaps(**maps))
    assert found['knn_aAcc'] == pytest.approx(100 / 3, abs=10)
    assert found['linear_aAcc'] == pytest.approx(100 / 3, abs=10)
    # a classifier that answers with one class everywhere: its share, and no other class is found
    guesses = found.guesses
    assert set(guesses) == {'aAcc', 'mIoU'} and 100 / 3 - 5 < guesses['aAcc'] < 60
    assert guesses['mIoU'] == pytest.approx(guesses['aAcc'] / 3, abs=0.02)


def test_void_never_counts(maps, plain, tmp_path):
    """Whatever it looks like, at training and at test."""
    before = evaluate_features(Seen(8), plain, LabelledMaps(**maps))
    for path in tmp_path.glob('img_dir/*/*.png'):
        labels = np.asarray(Image.open(str(path).replace('img_dir', 'ann_dir')))
        pixels = np.array(Image.open(path))
        pixels[labels == 3] = COLOURS[0]
        Image.fromarray(pixels).save(path)
    data = LabelledMaps(**maps)
    x, y = data.labelled_features(torch.rand(5, 6, 8), data.read(data.train[0])[1])
    labels = np.asarray(Image.open(data.train[0].label))
    assert sorted(set(y.tolist())) == [0, 1, 2] and len(y) == (labels[::8, ::8] < 3).sum()
    after = evaluate_features(Seen(1), plain, data)
    assert all(value > 99.9 for value in after.values()) and before['knn_aAcc'] < 100


def test_cells_have_the_class_of_most_of_their_labelled_pixels():
    data = LabelledMaps.__new__(LabelledMaps)
    data.num_classes = 3
    labels = torch.tensor([[0, 0, 1, -1, -1, -1], [0, 2, -1, 1, -1, 2]])
    features = torch.arange(6.0).reshape(2, 1, 3)
    x, y = data.labelled_features(features, labels)
    assert y.tolist() == [0, 1] and torch.equal(x, features[:, 0, :2].t())
    # 5 columns on 2 cells; features of more cells than pixels
    assert len(data.labelled_features(torch.rand(1, 1, 2), torch.zeros(3, 5).long())[1]) == 2
    _, kinds = data.labelled_features(torch.rand(1, 4, 4), torch.ones(2, 2).long())
    assert kinds.tolist() == [1] * 4


def test_images_in_any_order(maps, plain, monkeypatch):
    first = evaluate_features(Seen(8), plain, LabelledMaps(**maps), max_images=3)
    import mmdense.evaluation.labelled_data as module

    scandir = module.scandir
    monkeypatch.setattr(module, 'scandir', lambda *a, **k: reversed(sorted(scandir(*a, **k))))
    again = evaluate_features(Seen(8), plain, LabelledMaps(**maps), max_images=3)
    assert first == again


def test_nothing_else_changes(maps, plain):
    backbone = Seen(8).train()
    backbone.bn.weight.grad = torch.ones(3)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    evaluate_features(backbone, plain, LabelledMaps(**maps))
    assert backbone.training and backbone.bn.training and (backbone.bn.weight.grad == 1).all()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1]))
    assert not backbone.stages[0]._forward_hooks


def test_metrics_are_those_of_mmseg(require):
    require('mmseg')
    from mmseg.evaluation import IoUMetric

    rng = torch.Generator().manual_seed(0)
    true, predicted = (torch.randint(0, 5, (40, 50), generator=rng) for _ in range(2))
    areas = IoUMetric.intersect_and_union(predicted, true, 5, ignore_index=255)
    iou = 100 * areas[0] / areas[1]
    found = LabelledMaps.metrics(count_pairs(true, predicted, 5))
    assert found['mIoU'] == pytest.approx(float(iou.mean()), rel=1e-6)
    assert found['aAcc'] == pytest.approx(float(100 * (true == predicted).float().mean()), rel=1e-6)
    # classes that do not occur do not count, but what is taken for them is wrong
    assert LabelledMaps.metrics(count_pairs(true % 2, true % 2 * 3, 5))['mIoU'] == 50
    balanced = LabelledBoxes.metrics(torch.tensor([[8, 2, 0], [1, 1, 0], [0, 0, 0]]))
    assert balanced == dict(accuracy=75, balanced_accuracy=pytest.approx(65))


# ---------------------------------------------------------------- the classifiers


@pytest.mark.parametrize('k', [1, 5, 500])
def test_nearest_neighbours_by_brute_force(k):
    rng = np.random.default_rng(k)
    bank, queries = rng.normal(size=(60, 7)), rng.normal(size=(1500, 7))
    labels = rng.integers(0, 4, 60)
    knn = NearestNeighbours(torch.tensor(bank), torch.tensor(labels), None, 4, k=k)
    scores = knn(torch.tensor(queries))
    assert scores.shape == (1500, 4)
    for query, found in zip(queries[::50], scores[::50].numpy()):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        votes = np.zeros(4)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += np.exp(cosine[i] / 0.07)
        np.testing.assert_allclose(found, votes / votes.sum(), rtol=1e-9, atol=1e-12)


def some_features(n=300, c=12, k=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, c, generator=rng)
    labels = torch.randint(0, k, (n,), generator=rng)
    x = centres[labels] + 1.5 * torch.randn(n, c, generator=rng)
    x[:, 0] = 7.3  # says nothing
    x[:, 1] = 1e3 * x[:, 2] + 500  # of another size, and the same as another
    return x, labels, torch.arange(n) // 10


@pytest.mark.parametrize('decay', [1.0, 0.01])
def test_probe_by_newtons_method(decay):
    x, labels, images = some_features()
    probe = LinearProbe(x, labels, images, 4, decay=decay)
    z = x.double()[:, 1:]
    z = (z - z.mean(0)) / z.std(0, unbiased=False)
    z = torch.cat([z, torch.ones(len(z), 1)], dim=1)

    def objective(w):
        w = w.reshape(12, 4)
        return cross_entropy(z @ w, labels) + decay / 2 * w[:-1].square().sum()

    w = torch.zeros(48, dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(objective, w)
        hessian = torch.autograd.functional.hessian(objective, w)
        w = w - torch.linalg.pinv(hessian, hermitian=True, rtol=1e-10) @ gradient
    assert gradient.abs().max() < 1e-10
    logits = z @ w.reshape(12, 4)
    torch.testing.assert_close(
        probe(x).softmax(1), logits.softmax(1), rtol=0, atol=2e-3 if decay < 1 else 5e-4
    )
    assert not probe.weight[0].any() and probe(x[:5] * 0 + 1e3).isfinite().all()


def test_probe_chooses_its_decay_on_images_held_out():
    x, labels, images = some_features(n=200, c=40, k=3)
    probe = LinearProbe(x, labels, images, 3)
    held = images % 5 == 4
    mean, std = x[:, 1:].mean(0), x[:, 1:].std(0, unbiased=False)
    losses = {}
    for decay in LinearProbe.DECAYS:
        # standardised by all images, as it does; constant channels aside
        z = torch.cat([torch.zeros(len(x), 1), (x[:, 1:] - mean) / std], dim=1)
        part = LinearProbe(z[~held], labels[~held], None, 3, decay=decay)
        losses[decay] = float(cross_entropy(part(z[held]), labels[held]))
    assert probe.decay == min(losses, key=losses.get) and len(set(losses.values())) == 4
    # pure noise is best not used
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    noise = LinearProbe(noise, labels, images, 3)
    assert noise.decay == 1
    assert LinearProbe(x[:40], labels[:40], images[:40], 3).decay == 0.1


# ---------------------------------------------------------------- boxes


def write_voc(root, boxes_of, size=(120, 90)):
    """Images in Pascal VOC's layout: coloured boxes (name, x0, y0, x1, y1) on grey."""
    for folder in ('ImageSets/Main', 'Annotations', 'JPEGImages'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, boxes in boxes_of.items():
        pixels = np.full((*size[::-1], 3), 90, dtype=np.uint8)
        things = ''
        for kind, x0, y0, x1, y1 in boxes:
            pixels[y0:y1, x0:x1] = COLOURS[dict(a=0, b=1)[kind]]
            things += (
                f'<object><name>{kind}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>'
                f'<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>'
            )
        (root / f'Annotations/{name}.xml').write_text(f'<annotation>{things}</annotation>')
        Image.fromarray(pixels).save(root / f'JPEGImages/{name}.png')
    return boxes_of


@pytest.fixture
def boxes(tmp_path):
    """In Pascal VOC's layout, and as COCO json."""
    rng = np.random.default_rng(0)
    boxes_of = {}
    for i in range(32):
        x, y = rng.integers(5, 40, 2)
        boxes_of[f'i{i}'] = [('ab'[i % 2], x, y, x + 16, y + 24), ('b', 90, 60, 110, 80)]
    write_voc(tmp_path, boxes_of)
    categories = [dict(id=7, name='b'), dict(id=3, name='a')]
    for split, names in (('train', list(boxes_of)[:24]), ('val', list(boxes_of)[24:])):
        (tmp_path / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
        things = [
            dict(image_id=n, category_id=dict(a=3, b=7)[kind], bbox=list(map(int, (x, y, X, Y))))
            for n in names
            for kind, x, y, x1, y1 in boxes_of[n]
            for X, Y in [(x1 - x, y1 - y)]
        ]
        content = dict(
            images=[dict(id=n, file_name=f'{n}.png') for n in names],
            annotations=[*things, dict(things[0], category_id=3, iscrowd=1)],
            categories=categories,
        )
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
    return dict(data_root=str(tmp_path), img_suffix='.png')


def test_patches(boxes, plain):
    data = LabelledBoxes(**boxes)
    assert data.classes == ['a', 'b'] and data.num_classes == 3
    found = evaluate_features(Seen(2), plain, data)
    assert set(found) == {
        f'{m}_{k}' for m in ('knn', 'linear') for k in ('accuracy', 'balanced_accuracy')
    }
    assert all(value > 85 for value in found.values()), found
    coco = LabelledBoxes(**boxes, train='train.json', test='val.json')
    assert coco.train == data.train and evaluate_features(Seen(2), plain, coco) == found


def test_features_of_a_box_are_the_mean_within(boxes):
    data = LabelledBoxes(**boxes)
    pixels, (places, kinds) = data.read(data.train[0])
    features = torch.from_numpy(pixels).permute(2, 0, 1).float()
    x, y = data.labelled_features(features, (places, kinds))
    assert y.tolist()[:2] == [data.classes.index(name) for name, _ in data.train[0].label]
    for (name, _), row in zip(data.train[0].label, x):
        colour = torch.tensor(COLOURS['ab'.index(name)][::-1].copy()).float()
        torch.testing.assert_close(row, colour)
    small = torch.nn.functional.avg_pool2d(features[None], 5)[0]  # another scale, the same place
    y0, x0 = 60 // 5, 90 // 5
    torch.testing.assert_close(
        data.labelled_features(small, (places[1:2], kinds[1:2]))[0][0], small[:, y0 + 2, x0 + 2]
    )


def test_background_keeps_clear_of_boxes():
    from torchvision.ops import box_iou

    rng = torch.Generator().manual_seed(0)
    start = torch.rand(30, 2, generator=rng) * 0.7
    boxes = torch.cat([start, start + 0.05 + torch.rand(30, 2, generator=rng) * 0.2], dim=1)
    found = _background(boxes, 5)
    assert 20 <= len(found) <= 30 and box_iou(found, boxes).max() < 0.3
    assert found.min() >= 0 and found.max() <= 1.0001
    assert torch.equal(found, _background(boxes, 5)) and not torch.equal(
        found[:5], _background(boxes, 6)[:5]
    )
    assert len(_background(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 0)) == 0


# ---------------------------------------------------------------- what can be wrong


def test_bad_maps_say_so(maps, plain, tmp_path):
    def error(words, **changed):
        with pytest.raises(DataError, match=words) as caught:
            evaluate_features(Seen(8), plain, LabelledMaps(**dict(maps, **changed)))
        assert '\n' not in str(caught.value)

    error('there is no folder .*/nowhere/img_dir/train', data_root=str(tmp_path / 'nowhere'))
    error(r'no image .*img_dir/train/\*.jpg', img_suffix='.jpg')
    error('8 of 8 images have no label map; for .*train0.png it would be', seg_map_suffix='.tif')
    error('has the class 2; allowed are 0 to 1 .*and ignore_index, 3', num_classes=2)
    error('has the class 3; .* ignore_index, 255', ignore_index=255)
    same = dict(img_path='img_dir/train', seg_map_path='ann_dir/train')
    error('8 images are in train and in test, such as .*train0.png', test=same)
    (tmp_path / 'ann_dir/train/train3.png').write_bytes(b'x' * 50)
    error('cannot read label map .*train3.png')
    Image.fromarray(COLOURS[[[0]]]).save(tmp_path / 'ann_dir/train/train3.png')
    error('train3.png is 1×1×3, its image 48×64; it needs a class number for each pixel')
    Image.new('L', (10, 12)).save(tmp_path / 'ann_dir/train/train3.png')
    error('train3.png is 12×10, its image 48×64')
    (tmp_path / 'ann_dir/train/train3.png').unlink()
    error('1 of 8 images have no label map; for .*train3.png')
    (tmp_path / 'img_dir/train/train3.png').unlink()
    for path in tmp_path.glob('ann_dir/val/*'):
        Image.new('L', (64, 48), 3).save(path)
    error('nothing in the 4 test images is labelled')
    for path in tmp_path.glob('ann_dir/train/*'):
        Image.new('L', (64, 48), 3).save(path)
    error('no location of the 7 training images is labelled')
    (tmp_path / 'img_dir/train/train0.png').write_bytes(b'')
    error('cannot read image .*train0.png: the file is empty')


def test_bad_boxes_say_so(boxes, tmp_path):
    def error(words, **changed):
        with pytest.raises(DataError, match=words) as caught:
            data = LabelledBoxes(**dict(boxes, **changed))
            data.read(data.train[0])
        assert '\n' not in str(caught.value)

    error('there is no file .*/trainval.txt', train='ImageSets/Main/trainval.txt')
    error('there is no folder .*/images', img_path='images')
    error('i0.png has a box of a; classes are b', classes=['b'])
    error('i0 of .*train.txt has no annotation: no file .*/xml/i0.xml', ann_path='xml')
    (tmp_path / 'broken.json').write_text('{"images": []}')
    error('broken.json is no COCO json', train='broken.json')
    (tmp_path / 'empty.json').write_text('{"images": [], "annotations": [], "categories": []}')
    error('no image of .*empty.json has a box', train='empty.json')
    Image.new('RGB', (30, 30)).save(tmp_path / 'JPEGImages/i0.png')
    error('i0.png, of 30×30 pixels, has a box outside of it')
    (tmp_path / 'Annotations/i0.xml').write_text('<annotation>')
    error('cannot read annotation .*i0.xml')


def test_one_folder_is_split(maps, boxes):
    data = LabelledMaps(**dict(maps, test=None))
    names = [[image.path[-5] for image in split] for split in (data.train, data.test)]
    assert names == [list('012456'), list('37')]
    assert len(LabelledBoxes(**dict(boxes, test=None)).test) == 6


def test_bad_arguments_say_so(maps, plain):
    data = LabelledMaps(**maps)
    for words, options in [
        ('methods must be some of knn, linear, got', dict(methods='knn')),
        ('methods must be some of knn, linear, got', dict(methods=['svm'])),
        ('size must be a whole number', dict(size=0)),
        ('max_images must be a whole number', dict(max_images=-1)),
        ('stage 4, but Seen has 1: 0 to 0', dict(stage=4)),
        ('stage must be a whole number', dict(stage='last')),
    ]:
        with pytest.raises(InputError, match=words):
            evaluate_features(Seen(8), plain, data, **options)


# ---------------------------------------------------------------- several processes; real data


class Normed(Seen):
    def __init__(self, mean):
        super().__init__(8)
        self.stages.append(nn.BatchNorm2d(3))
        self.stages[1].running_mean.fill_(mean)

    def forward(self, x):
        return self.stages[1](self.stages[0](x))


def child(maps, folder):
    """What each of the processes does."""
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    plain = SelfSupDataPreprocessor(mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True)
    backbone = Normed(0.5 + rank)  # the first one's counts
    found = evaluate_features(backbone, plain, LabelledMaps(**maps), max_images=5)
    assert backbone.stages[1].running_mean[0] == 0.5 + rank
    torch.distributed.barrier()
    if rank == 0:
        Path(maps['data_root'], 'img_dir/train/train1.png').write_bytes(b'')
    torch.distributed.barrier()
    with pytest.raises(DataError) as caught:  # the second process reads it
        evaluate_features(Seen(8), plain, LabelledMaps(**maps))
    Path(folder, f'{rank}.json').write_text(json.dumps([found, str(caught.value)]))


if __name__ == '__main__':
    child(json.loads(sys.argv[1]), sys.argv[2])
    os._exit(0)  # PyTorch 2.1 can hang while it takes gloo down


def test_two_processes_give_the_same_numbers(maps, plain, tmp_path, run_forked):
    alone = evaluate_features(Normed(0.5), plain, LabelledMaps(**maps), max_images=5)
    done = run_forked(__file__, json.dumps(maps), tmp_path, number=2)
    assert done.returncode == 0, done.stdout
    for rank in range(2):
        found, error = json.loads((tmp_path / f'{rank}.json').read_text())
        assert found == alone and 'train1.png: the file is empty' in error


def test_the_tool(data_root, exported, run_here, tmp_path):
    checkpoint, _ = exported(18)
    tool = ['evaluate_features.py', f'mine={checkpoint}', '--data']
    out = tmp_path / 'out.json'
    code, printed = run_here(
        *(*tool, 'configs/_base_/evaluation_camvid.py', '--data-root', data_root / 'camvid'),
        *('--baseline', 'random', '--out', out, '--cfg-options', 'max_images=4', 'size=160'),
    )
    assert code == 0, printed
    assert '| checkpoint | knn_mIoU | knn_aAcc | linear_mIoU | linear_aAcc |' in printed.out
    results = json.loads(out.read_text())
    assert list(results) == ['random', 'mine']
    # above chance: one class has less than a third of the pixels
    assert results['random']['knn_aAcc'] > 35 and results['random']['linear_aAcc'] > 35
    assert f'| mine       | {results["mine"]["knn_mIoU"]:.2f}' in printed.out
    for options, words in [
        (('configs/_base_/evaluation_bccd.py', '--data-root', tmp_path), 'there is no file'),
        (('configs/_base_/schedules/sgd_coslr_200e.py',), 'has no default_hooks.evaluation'),
    ]:
        code, printed = run_here(*tool, *options)
        *_, line = printed.err.splitlines()
        assert code == 1 and line.startswith('mmdense: error: ') and words in line


def test_blood_cells(data_root, plain):
    data = LabelledBoxes(str(data_root / 'bccd'))
    assert data.classes == ['Platelets', 'RBC', 'WBC'] and len(data.train) == 205
    found = evaluate_features(Seen(16), plain, data, max_images=12)
    # of four, and the colours of a few cells tell them
    assert found['knn_balanced_accuracy'] > 40 and found['linear_accuracy'] > 50
