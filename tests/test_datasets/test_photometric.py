# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Pixels and draws are torchvision's, on the CPU and in the batch."""

import math

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torchvision.transforms.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmpretrain.models import SelfSupDataPreprocessor as Theirs
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms as T

from mmdense.datasets import (
    ColorJitter,
    GaussianBlur,
    MultiView,
    RandomGrayscale,
    RandomResizedCrop,
    Solarize,
    default_collate,
)
from mmdense.datasets.transforms import apply_batch, apply_operation
from mmdense.models import SelfSupDataPreprocessor
from mmdense.registry import MODELS, TRANSFORMS
from mmdense.utils.errors import InputError

TORCHVISION = dict(
    brightness=F.adjust_brightness,
    offset=lambda img, share: np.clip(np.asarray(img, np.float32) + 255 * share, 0, 255),
    contrast=F.adjust_contrast,
    saturation=F.adjust_saturation,
    hue=F.adjust_hue,
    grayscale=lambda img, _: F.rgb_to_grayscale(img, 3),
    blur=lambda img, sigma: F.gaussian_blur(img, 23, sigma),  # MoCo's and BYOL's 23 pixels
    solarize=F.solarize,
)
VALUES = dict(
    brightness=[0.6, 0.95, 1.4, 0.0],
    offset=[-0.4, -0.2, 0.0, 0.2, 1.0],
    contrast=[0.6, 0.95, 1.4, 0.0],
    saturation=[0.6, 0.95, 1.4, 0.0],
    hue=[-0.5, -0.1, -0.03, 0.0, 0.04, 0.1, 0.33, 0.5],
    grayscale=[0.0],
    blur=[0.1, 0.5, 1.0, 2.0],
    solarize=[0.0, 1.0, 100.0, 128.0, 256.0],
)
OPERATIONS = [(name, value) for name, values in VALUES.items() for value in values]


@pytest.fixture(scope='module')
def photographs():
    """RGB, 224×224, of very different colours."""
    names = ('astronaut', 'coffee', 'cat', 'rocket')
    images = [Image.fromarray(getattr(skimage.data, name)()[:400, :400]) for name in names]
    return [np.asarray(image.resize((224, 224), Image.BICUBIC)) for image in images]


def one_by_one(images, name, value):
    """RGB in and out, as torchvision's."""
    return [apply_operation(img[..., ::-1].copy(), name, value)[..., ::-1] for img in images]


def together(images, operations):
    batch = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2)
    return list(apply_batch(batch, operations).permute(0, 2, 3, 1).numpy()[..., ::-1])


def difference(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b)).mean()


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize('name, value', OPERATIONS)
def test_as_torchvision(name, value, photographs):
    """Mean absolute difference on each image at most 1.5 of 255, mostly far below."""
    expected = [np.asarray(TORCHVISION[name](Image.fromarray(img), value)) for img in photographs]
    alone = one_by_one(photographs, name, value)
    batch = together(photographs, [[(name, value)]] * len(photographs))
    # HSV in eight bits is a matter of taste; Pillow rounds the grey it mixes with
    limit = dict(hue=1.5, saturation=0.6).get(name, 0.15)
    for img, a, b in zip(expected, alone, batch):
        assert a.shape == b.shape == img.shape
        assert difference(a, img) <= limit
        assert difference(b, img) <= limit


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('box', [(0, 0, 300, 451), (13, 40, 222, 100), (50, 60, 30, 45)])
def test_resize_as_torchvision(mode, box):
    """Of Pillow images, which filters where it shrinks; here also unequally, and enlarged."""
    img = skimage.data.chelsea()
    crop = RandomResizedCrop(128, interpolation=mode)
    crop.rand_crop_params = lambda img: box
    ours = crop(dict(img=img[..., ::-1].copy()))['img'][..., ::-1]
    interpolation = getattr(F.InterpolationMode, mode.upper())
    theirs = F.resized_crop(Image.fromarray(img), *box, (128, 128), interpolation)
    assert difference(ours, theirs) < 0.25
    # OpenCV's bilinear does not filter: that far off is another augmentation
    if mode == 'bilinear' and box[2] == 300:
        part = img[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        assert difference(cv2.resize(part, (128, 128)), theirs) > 1.5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_batch_agrees_with_the_images_alone(data):
    """Whatever each image's operations are, in noise too; hue apart, which HSV in eight bits
    makes coarse."""
    exact = [(n, v) for n, v in OPERATIONS if n not in ('hue', 'blur')]
    number, side = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    images = list(rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8))
    operation = st.one_of(st.none(), st.sampled_from(exact))
    todo = [data.draw(st.lists(operation, max_size=3)) for _ in images]
    for img, operations, batched in zip(images, todo, together(images, todo)):
        allowed = 0.0
        for name, value in filter(None, operations):
            (img,) = one_by_one([img], name, value)
            # one level, where a sum lies on the edge between two; later operations stretch it
            allowed = max(abs(value) if name != 'solarize' else 1.0, 1.0) * allowed + 1.0
            if name == 'solarize' and allowed > 1:
                return  # what lies at the threshold may go to either side
        assert np.abs(img.astype(int) - batched).max(initial=0) <= allowed


def test_images_stay_as_they_are(photographs):
    img = photographs[0].copy()
    for name, value in OPERATIONS:
        apply_operation(img, name, value)
    batch = torch.from_numpy(img).permute(2, 0, 1)[None].clone()
    before = batch.clone()
    apply_batch(batch, [OPERATIONS])
    np.testing.assert_array_equal(img, photographs[0])
    assert torch.equal(batch, before)


def test_blur_of_an_image_smaller_than_the_kernel():
    img = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    (alone,), (batched,) = one_by_one([img], 'blur', 2.0), together([img], [[('blur', 2.0)]])
    assert alone.shape == batched.shape == (3, 3, 3)


# ---------------------------------------------------------------- draws


def ks_distance(a, b):
    both = np.sort(np.concatenate([a, b]))
    a, b = (np.searchsorted(np.sort(x), both, side='right') / len(x) for x in (a, b))
    return np.abs(a - b).max()


NUMBER = 5000
LIMIT = 1.95 * math.sqrt(2 / NUMBER)  # p > .001


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize('strengths', [(0.4, 0.4, 0.4, 0.1), (0.8, 1.2, (0.5, 0.6), (0.1, 0.2))])
def test_jitter_is_drawn_as_torchvision_does(strengths):
    theirs = T.ColorJitter(*strengths)
    ours = ColorJitter(*strengths)
    drawn = [ours.draw() for _ in range(NUMBER)]
    params = [
        T.ColorJitter.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
        for _ in range(NUMBER)
    ]
    names = ['brightness', 'contrast', 'saturation', 'hue']
    for i, name in enumerate(names):
        a = [dict(operations)[name] for operations in drawn]
        assert ks_distance(a, [param[i + 1] for param in params]) < LIMIT
        # when in the order it comes
        turn = [[n for n, _ in operations].index(name) for operations in drawn]
        their_turn = [param[0].tolist().index(i) for param in params]
        counts = [np.bincount(t, minlength=4) / NUMBER for t in (turn, their_turn)]
        assert np.abs(counts[0] - counts[1]).max() < LIMIT


def test_brightness_is_added():
    """In the place of a factor; a uniform share of white of either sign."""
    jitter = ColorJitter(brightness=0.4, contrast=0.4, additive_brightness=True)
    drawn = [dict(jitter.draw()) for _ in range(NUMBER)]
    assert all(operations.keys() == {'offset', 'contrast'} for operations in drawn)
    uniform = np.random.uniform(-0.4, 0.4, NUMBER)
    assert ks_distance([operations['offset'] for operations in drawn], uniform) < LIMIT


def test_blur_is_drawn_as_torchvision_does():
    ours = [GaussianBlur((0.1, 2.0), prob=1.0).draw()[0][1] for _ in range(NUMBER)]
    theirs = [T.GaussianBlur.get_params(0.1, 2.0) for _ in range(NUMBER)]
    assert ks_distance(ours, theirs) < LIMIT


@pytest.mark.parametrize(
    'kind, settings',
    [(ColorJitter, dict(hue=0.1)), (RandomGrayscale, {}), (GaussianBlur, {}), (Solarize, {})],
)
@pytest.mark.parametrize('prob', [0.0, 0.1, 0.8, 1.0])
def test_as_often_as_asked(kind, settings, prob):
    transform = kind(prob=prob, **settings)
    often = np.mean([transform.draw() != [None] for _ in range(NUMBER)])
    assert abs(often - prob) <= 3.3 * math.sqrt(prob * (1 - prob) / NUMBER)


# ---------------------------------------------------------------- put off to the device

CONFIGS = ['mocov2', 'byol', 'slotcon', 'detco']


def pipeline(repo, name, **settings):
    config = Config.fromfile(str(repo / 'configs' / '_base_' / 'views' / f'{name}.py'))
    config.train_pipeline[1].update(settings)
    return [TRANSFORMS.build(t) for t in config.train_pipeline[1:]]


def run(transforms, images):
    packed = []
    for img in images:
        results = dict(img=img.copy(), img_path='a.jpg')
        for transform in transforms:
            results = transform(results)
        packed.append(results)
    return default_collate(packed)


@pytest.mark.parametrize('name', CONFIGS)
def test_device_augment_gives_the_same_views(name, repo, photographs, mmdense_scope):
    """From the same seed: the draws are the same, the pixels but for rounding; in every recipe."""
    photographs = photographs * 4  # most operations, in most orders
    batches = []
    for device_augment in (False, True):
        np.random.seed(1)
        batch = run(pipeline(repo, name, device_augment=device_augment), photographs)
        assert all(view.dtype == torch.uint8 for view in batch['inputs'])
        assert ('deferred' in batch['data_samples'][0]) == device_augment
        batches.append(SelfSupDataPreprocessor()(batch))
    cpu, device = batches
    assert len(cpu['inputs']) == (4 if name == 'detco' else 2)
    for a, b in zip(cpu['inputs'], device['inputs']):
        assert a.shape == b.shape and a.dtype == b.dtype == torch.float32
        assert (a - b).abs().mean((1, 2, 3)).max() < 3  # a hue of either making and a solarization
        assert (a - b).abs().mean() < 0.5
    for a, b in zip(cpu['data_samples'], device['data_samples']):
        assert 'deferred' not in b
        np.testing.assert_array_equal(a.get('view_boxes', 0), b.get('view_boxes', 0))


def test_normalised_as_without(repo, photographs, mmdense_scope):
    settings = dict(mean=[123.675, 116.28, 103.53], std=[58.4, 57.1, 57.4], to_rgb=True)
    views = []
    for device_augment in (False, True):
        np.random.seed(1)
        batch = run(pipeline(repo, 'byol', device_augment=device_augment), photographs)
        views.append(SelfSupDataPreprocessor(**settings)(batch)['inputs'][0])
    assert (views[0] - views[1]).abs().mean() < 0.5 / 57
    assert views[0].min() < -1 and views[0].max() < 3


@pytest.mark.parametrize('options', [dict(), dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)])
def test_normalised_as_by_mmpretrain(options):
    """One tensor or several views, to the last bit."""
    views = [torch.randint(256, (2, 3, 5, size), dtype=torch.uint8) for size in (4, 6)]
    for inputs in (views, views[0]):
        data = dict(inputs=inputs, data_samples=None)
        ours, theirs = (
            kind(**options)(data)['inputs'] for kind in (SelfSupDataPreprocessor, Theirs)
        )
        assert type(ours) is type(theirs)
        for a, b in zip(ours, theirs):
            assert a.dtype == torch.float32 and torch.equal(a, b)


class NoWait(TorchDispatchMode):
    """Fails where the host would wait for the device."""

    waits = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'equal')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.waits, func
        return func(*args, **(kwargs or {}))


def test_the_host_does_not_wait(repo, photographs, mmdense_scope):
    np.random.seed(1)
    batch = run(pipeline(repo, 'byol', device_augment=True), photographs)
    preprocessor = SelfSupDataPreprocessor(mean=[1, 1, 1], std=[1, 1, 1], to_rgb=True)
    with NoWait():
        preprocessor(batch)


def test_mmpretrain_does_not_pack_what_is_not_finished(photographs, mmdense_scope):
    """It would train without colours and blur, and nobody would know."""
    view = MultiView([[dict(type='Solarize')]], 2, device_augment=True)
    pack = TRANSFORMS.build(dict(type='mmpretrain.PackInputs'))
    with pytest.raises(TypeError, match='DeferredView'):
        pack(view(dict(img=photographs[0])))


def test_no_algorithm_takes_what_is_not_finished(boxed, mmdense_scope):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    neck = dict(type='ProjectionMLP', in_channels=64, hid_channels=16, out_channels=8)
    model = MODELS.build(
        dict(type='PixPro', backbone=backbone, neck=neck, head=dict(type='PixContrastHead'))
    )
    samples = boxed(*torch.rand(2, 2, 4))
    samples[0].set_metainfo(dict(deferred=[[], []]))
    with pytest.raises(InputError, match='must be mmdense.SelfSupDataPreprocessor'):
        model(list(torch.rand(2, 2, 3, 64, 64)), samples, mode='loss')


CROP = dict(type='RandomResizedCrop', scale=8)
FLIP = dict(type='RandomFlip', prob=0.5)
BLUR = dict(type='GaussianBlur')
JIGSAW = dict(type='JigsawPatches', grid=1, patch_size=8)


@pytest.mark.parametrize(
    'late, culprit',
    [
        ([BLUR, dict(type='mmpretrain.Solarize', thr=128)], 'Solarize after GaussianBlur'),
        ([BLUR, CROP], 'RandomResizedCrop after GaussianBlur'),
        ([dict(type='mmcv.RandomApply', transforms=[BLUR]), CROP], 'RandomResizedCrop after'),
        ([JIGSAW, FLIP], 'RandomFlip after JigsawPatches'),
    ],
)
def test_what_the_device_cannot_wait_for_is_refused(late, culprit, mmdense_scope):
    pipelines = [[CROP, FLIP, BLUR, FLIP], [CROP, *late]]
    MultiView(pipelines, [1, 1], with_boxes=False)
    with pytest.raises(InputError, match=f'pipeline 1 has {culprit}') as e:
        MultiView(pipelines, [1, 1], with_boxes=False, device_augment=True)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'kind, settings',
    [
        (ColorJitter, dict(hue=0.6)),
        (ColorJitter, dict(brightness=-0.1)),
        (ColorJitter, dict(additive_brightness=True, brightness=1.1)),
        (ColorJitter, dict(contrast='much')),
        (ColorJitter, dict(saturation=(1.2, 0.8))),
        (ColorJitter, dict(prob=1.1)),
        (RandomGrayscale, dict(prob=-1)),
        (GaussianBlur, dict(sigma=2.0)),
        (GaussianBlur, dict(sigma=(0.0, 2.0))),
        (Solarize, dict(thr=300)),
        (RandomResizedCrop, dict(scale=8, interpolation='lanczos')),
    ],
)
def test_wrong_settings(kind, settings):
    with pytest.raises(InputError, match=next(reversed(settings))) as e:
        kind(**settings)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('channels', [1, 2, 4, 8])
def test_other_channels_than_three(channels):
    """Each band as alone, on the CPU and in the batch; no saturation, hue and luma."""
    image = np.random.RandomState(channels).randint(0, 256, (29, 31, channels), np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    for name, value in OPERATIONS:
        found = apply_operation(image, name, value)
        assert found.shape == image.shape and found.dtype == np.uint8
        if name in ('saturation', 'hue', 'grayscale'):
            assert np.array_equal(found, image)
        elif name != 'contrast':  # which takes the mean of all channels
            gray = [
                apply_operation(image[..., [i]].repeat(3, 2), name, value) for i in range(channels)
            ]
            assert np.array_equal(found, np.stack([one[..., 0] for one in gray], 2)), name
        else:
            mean = int(image.mean() + 0.5)
            assert np.abs(found - (value * image + (1 - value) * mean).clip(0, 255)).max() < 1.001
        batch = apply_batch(planes, [[(name, value)]])[0].permute(1, 2, 0).numpy()
        assert batch.shape == image.shape and np.abs(batch - found).max() <= 1, name


@pytest.mark.parametrize('channels', [1, 4, 8])
def test_views_of_other_channels(channels, mmdense_scope):
    jitter = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    pipeline = [
        dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0)),
        dict(type='ColorJitter', **jitter),
        dict(type='RandomGrayscale', prob=0.5),
        dict(type='GaussianBlur', prob=0.5),
        dict(type='Solarize', prob=0.5),
        dict(type='RandomFlip', prob=0.5),
    ]
    image = np.random.RandomState(0).randint(0, 256, (50, 60, channels), np.uint8)
    for last in ([], [dict(type='JigsawPatches', grid=2, patch_size=16)]):
        for deferred in (False, True):
            views = MultiView(
                [pipeline[:5] + pipeline[5:] * (not deferred) + last], [2], not last, deferred
            )
            packed = TRANSFORMS.build(dict(type='PackInputs')).transform(
                views.transform(dict(img=image, img_path='a'))
            )
            data = SelfSupDataPreprocessor(mean=[100.0] * channels, std=[50.0] * channels)(
                default_collate([packed])
            )
            shape = (1, channels, 16, 64) if last else (1, channels, 32, 32)
            assert [tuple(view.shape) for view in data['inputs']] == [shape] * 2


def test_mean_and_std_of_each_channel():
    values = torch.arange(4.0)
    pixels = SelfSupDataPreprocessor(
        mean=values.tolist(), std=(values + 1).tolist(), bgr_to_rgb=True
    )
    assert pixels.channels == 4 and 'mean' not in pixels.state_dict()
    batch = torch.randint(0, 256, (2, 4, 3, 3), dtype=torch.uint8)
    found = pixels(dict(inputs=[batch], data_samples=None))['inputs'][0]
    column = values.view(-1, 1, 1)
    assert torch.equal(found, (batch.float() - column) / (column + 1))  # in the order of the file
    assert SelfSupDataPreprocessor(mean=[1.0], std=[2.0]).channels is None
    with pytest.raises(InputError, match='as many of each'):
        SelfSupDataPreprocessor(mean=[1.0] * 4, std=[1.0])
