# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re
import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from torch.nn.functional import interpolate

from mmdense.checkpoints import describe_product
from mmdense.evaluation import UnsupervisedIoU
from mmdense.models import SlotCon, best_groups
from mmdense.registry import METRICS
from mmdense.utils.errors import DataError, InputError


def sample(pred, true):
    element = BaseDataElement(metainfo=dict(img_path='a.jpg'))
    for key, labels in (('pred_sem_seg', pred), ('gt_sem_seg', true)):
        element.set_field(PixelData(data=torch.as_tensor(labels).reshape(1, 2, -1)), key)
    return element


def measure(samples, num_classes, size=None, **kwargs):
    """Through MMEngine's evaluator, as in a run."""
    evaluator = Evaluator([UnsupervisedIoU(prefix='x', **kwargs)])
    evaluator.dataset_meta = dict(classes=tuple('abcdefgh'[:num_classes]))
    for each in samples:
        evaluator.process([each])
    metrics = evaluator.evaluate(len(samples) if size is None else size)
    return metrics['x/mIoU'], metrics['x/aAcc']


def test_is_registered():
    with DefaultScope.overwrite_default_scope('mmdense'):
        assert METRICS.build(dict(type='UnsupervisedIoU')).prefix == 'unsupervised'


@pytest.mark.parametrize('many_to_one', [False, True])
def test_names_of_groups_do_not_matter(many_to_one):
    rng = np.random.default_rng(0)
    new_names = np.array([40, 3, 0, 7, 5])
    true = [rng.integers(0, 5, 60) for _ in range(3)]
    samples = [sample(new_names[t], t) for t in true]
    assert measure(samples, 5, many_to_one=many_to_one) == (100, 100)
    # but one image must not use other names than the rest
    samples[0] = sample(np.roll(new_names, 1)[true[0]], true[0])
    assert measure(samples, 5, many_to_one=many_to_one)[1] < 100


def published(golden):
    """The scores and labels of DenseSiam's code, as samples, and its numbers."""
    g = golden('densesiam_cluster_iou')
    size = tuple(g['label'].shape[1:])
    labels, _ = best_groups(g['scores'], size)
    return g, [sample(pred, true) for pred, true in zip(labels.flatten(1), g['label'].flatten(1))]


def test_golden_of_the_published_counting(golden):
    """DenseSiam's confusion, mIoU, mAcc and aAcc; ours leaves out the class that is absent."""
    g, samples = published(golden)
    number = g['scores'].size(1)
    metric = UnsupervisedIoU(ignore_index=-1, count_absent=True)
    metric.dataset_meta = dict(classes=tuple('abcdefgh'[:number]))
    matrix = np.zeros((number, number), int)  # groups × classes
    for each in samples:
        group, true = metric._labels(each.to_dict())
        np.add.at(matrix, (group.numpy(), true.numpy()), 1)
    assert np.array_equal(matrix.T, g['confusion'].numpy())
    found, _ = metric.measure(matrix)
    assert found.keys() == {'mIoU', 'mAcc', 'aAcc'}
    for name, value in found.items():
        assert value == pytest.approx(float(g[name]), rel=1e-5), name
    ours = measure(samples, number, ignore_index=-1)
    absent = np.count_nonzero(matrix.sum(axis=0) == 0)
    assert absent == 1
    mean = float(g['mIoU']) * number / (number - absent)
    assert ours == (pytest.approx(mean, abs=0.006), pytest.approx(float(g['aAcc']), abs=0.006))


def test_published_things_and_stuff_are_cut_by_group(golden):
    """Why the published rows for things and for stuff are not reported: they are not of classes."""
    from scipy.optimize import linear_sum_assignment

    g, _ = published(golden)
    matrix = g['confusion'].numpy().T
    groups, classes = linear_sum_assignment(matrix, maximize=True)
    by_group = matrix[:, classes].T  # row g: the truth of the class that group g is matched to
    by_class = np.zeros_like(matrix)
    by_class[:, classes] = matrix[groups]
    by_class = by_class.T
    things = slice(0, int(g['num_things']))

    def accuracy(square):
        return 100 * np.trace(square) / square.sum()

    assert accuracy(by_group[things, things]) == pytest.approx(float(g['aAcc_th']), rel=1e-5)
    assert accuracy(by_class[things, things]) != pytest.approx(float(g['aAcc_th']), rel=1e-2)


def test_an_absent_class_counts_as_zero():
    samples = [sample([0, 0, 1, 1], [0, 0, 1, 1]), sample([2, 2, 1, 1], [1, 1, 1, 1])]
    # group 2 is matched to the class that is absent, and takes two pixels of b
    iou = [100, 100 * 4 / 6, 0]
    assert measure(samples, 3)[0] == pytest.approx(sum(iou) / 2, abs=0.01)
    assert measure(samples, 3, count_absent=True)[0] == pytest.approx(sum(iou) / 3, abs=0.01)
    with pytest.raises(InputError, match='count_absent must be True or False'):
        UnsupervisedIoU(count_absent=1)


# pixels of group × class: [2, 1], [1, 2], [0, 1]
PRED, TRUE = [0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 0, 1, 9]


def test_by_hand():
    # 0 → a, 1 → b; the pixel of group 2 is missed
    iou = 2 / (3 + 3 - 2), 2 / (4 + 3 - 2)
    expected = round(50 * sum(iou), 2), round(100 * 4 / 7, 2)
    assert measure([sample(PRED, TRUE)], 2, ignore_index=9) == expected
    # groups 1 and 2 → b
    iou = 2 / (3 + 3 - 2), 3 / (4 + 4 - 3)
    expected = round(50 * sum(iou), 2), round(100 * 5 / 7, 2)
    assert measure([sample(PRED, TRUE)], 2, ignore_index=9, many_to_one=True) == expected


def test_ignored_pixels_do_not_count():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 40)
    true[::4] = 255
    pred = np.where(true == 255, rng.integers(0, 30, 40), true)
    assert measure([sample(pred, true)], 3) == (100, 100)


def test_classes_that_never_occur_do_not_count_and_missed_ones_do():
    true = [0, 0, 1, 1, 2, 2]
    assert measure([sample([5, 5, 6, 6, 7, 7], true)], 8) == (100, 100)
    # one group for all: half of the classes' mean comes from nothing
    assert measure([sample([4] * 6, true)], 3) == (round(100 / 9, 2), round(100 / 3, 2))


@pytest.mark.parametrize('groups', [3, 4, 6])
def test_no_other_matching_gets_more_pixels_right(groups):
    rng = np.random.default_rng(groups)
    pred, true = rng.integers(0, groups, 60), rng.integers(0, 4, 60)
    names = [0, 1, 2, 3] + [-1] * (groups - 4)
    best = max((np.array(p)[pred] == true).mean() for p in permutations(names, groups))
    one = measure([sample(pred, true)], 4)
    assert one[1] == round(100 * best, 2)
    many = measure([sample(pred, true)], 4, many_to_one=True)
    assert many[1] >= one[1]


def test_guessing_is_chance():
    rng = np.random.default_rng(0)
    pred, true = rng.integers(0, 4, 40_000), rng.integers(0, 4, 40_000)
    for many_to_one in (False, True):
        miou, accuracy = measure([sample(pred, true)], 4, many_to_one=many_to_one)
        assert accuracy == pytest.approx(25, abs=1.5)
    miou, _ = measure([sample(pred, true)], 4)
    assert miou == pytest.approx(100 / 7, abs=1)
    # more groups, fewer pixels in those that are matched
    many_groups = measure([sample(rng.integers(0, 40, 40_000), true)], 4)
    assert many_groups[1] == pytest.approx(2.5, abs=0.5)


def test_images_that_a_sampler_repeats_count_once():
    good, bad = sample([0, 0, 1, 1], [1, 1, 0, 0]), sample([0, 1, 0, 1], [1, 1, 0, 0])
    assert measure([good, bad], 2, size=1) == (100, 100)


@pytest.mark.parametrize(
    'pred, true, words',
    [
        ([0, 0, 1, 1], [0, 0, 1, 1, 1, 1], r'for a.jpg is \(2, 2\), the ground truth \(2, 3\)'),
        ([0, 0], [0, 3], 'a.jpg has the true label 3; allowed are 0 to 1 and ignore_index, 255'),
        ([0, 0], [0, -1], 'a.jpg has the true label -1'),
        ([0, -2], [0, 1], 'a.jpg has the group -2, below 0'),
        ([0.5, 1], [0, 1], 'labels must be whole numbers, of a.jpg they are not'),
        ([0, 1], [255, 255], 'every pixel has the true label 255'),
    ],
)
def test_bad_samples_say_so(pred, true, words):
    with pytest.raises(DataError, match=words):
        measure([sample(pred, true)], 2)


def test_missing_labels_and_wrong_arguments_say_so():
    with pytest.raises(DataError, match='a.jpg has no pred_sem_seg'):
        measure([BaseDataElement(metainfo=dict(img_path='a.jpg'))], 2)
    with pytest.raises(InputError, match='ignore_index must be a whole number'):
        UnsupervisedIoU(ignore_index='void')
    with pytest.raises(InputError, match='many_to_one must be True or False'):
        UnsupervisedIoU(many_to_one=1)


def test_predict_is_the_teachers_best_prototype_of_every_pixel(with_prototypes):
    _, model, _ = with_prototypes(150)
    model.eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    samples = [BaseDataElement(), sample(torch.zeros(60).int(), torch.zeros(60).int())]
    out = model.test_step(dict(inputs=images, data_samples=samples))
    assert [o.pred_sem_seg.data.shape for o in out] == [(1, 64, 96), (1, 2, 30)]

    # BGR to RGB, then the mean and the standard deviation of training
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])[..., None, None]
    inputs = (images.flip(1).float() - mean) / std
    teacher = model.encoder_k.module
    with torch.no_grad():
        _, scores = teacher['grouping'](teacher['neck'](teacher['backbone'](inputs)))
    whole = interpolate(scores, (64, 96), mode='bilinear')
    assert torch.equal(out[0].pred_sem_seg.data[0], whole[0].argmax(0))
    labels, best = SlotCon.best_prototypes(scores, (64, 96))
    assert torch.equal(labels, whole.argmax(1)) and torch.equal(best, whole.amax(1))

    # the student has no part in it
    for p in model.backbone.parameters():
        p.data.zero_()
    again = model.predict(inputs)
    assert torch.equal(again[0].pred_sem_seg.data, out[0].pred_sem_seg.data)


def test_equal_scores_give_the_first_prototype():
    labels, best = SlotCon.best_prototypes(torch.full((1, 200, 2, 2), 0.5), (4, 4))
    assert not labels.any() and (best == 0.5).all()


def test_predict_refuses_views(with_prototypes):
    _, model, _ = with_prototypes(150)
    model.eval()
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match='not on views or a list; give the data loader collate'):
        model([image, image], mode='predict')
    with pytest.raises(InputError, match='1 images but 0 data samples'):
        model(image, [], mode='predict')
    with pytest.raises(RuntimeError, match='Invalid mode'):
        model(image, mode='sing')


def test_camvid_by_the_test_tool(with_prototypes, run, tmp_path, data_root, require):
    require('mmseg')
    _, model, options = with_prototypes(150)
    checkpoint = tmp_path / 'slotcon.pth'
    meta = dict(mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    done = run(
        *(sys.executable, 'tools/test.py', 'configs/slotcon/slotcon_unsup-seg_camvid.py'),
        *(checkpoint, '--work-dir', tmp_path, '--cfg-options', *options),
        f'test_dataloader.dataset.data_root={data_root}/camvid',
        'test_dataloader.dataset.indices=4',
        'test_dataloader.num_workers=0',
    )
    assert done.returncode == 0, done.stdout
    found = dict(re.findall(r'(\w+/\w+): ([\d.]+)', done.stdout.splitlines()[-1]))
    assert set(found) >= {
        f'{m}/{k}' for m in ('one_to_one', 'many_to_one') for k in ('mIoU', 'aAcc')
    }
    assert 0 < float(found['one_to_one/aAcc']) <= float(found['many_to_one/aAcc']) <= 100
    assert 'road' in done.stdout  # IoU of classes by name
