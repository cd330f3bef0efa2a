# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test the views of a detector's pretraining: resized images and patches, padded to a batch."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from PIL import Image

from mmdense.datasets import CropProposal, LoadProposals, MultiView, ResizeShortSide, pad_collate
from mmdense.models import SelfSupDataPreprocessor
from mmdense.utils.errors import InputError


@pytest.mark.parametrize(
    'height, width, short, expected',
    [
        (480, 640, 320, (320, 426)),  # the longer side is rounded down
        (640, 480, 320, (426, 320)),
        (480, 640, 480, (450, 600)),  # not longer than max_size
        (200, 1000, 480, (120, 600)),
        (8, 1000, 320, (5, 625)),  # rounded, the shorter side makes the longer one
        (1, 5000, 320, (1, 5000)),
        (300, 300, 464, (464, 464)),
    ],
)
def test_shapes(height, width, short, expected):
    assert ResizeShortSide(320, 600).choose_shape(height, width, short) == expected


def test_pixels_are_pillows():
    image = np.random.RandomState(0).randint(0, 256, (48, 64, 3), np.uint8)
    results = ResizeShortSide(24).transform(dict(img=image))
    assert results['img'].shape == (24, 32, 3) and results['img_shape'] == (24, 32)
    expected = np.asarray(Image.fromarray(image).resize((32, 24), Image.BILINEAR))
    assert np.abs(results['img'].astype(int) - expected).max() <= 1


def test_lengths_are_drawn():
    np.random.seed(0)
    resize, found = ResizeShortSide([4, 6, 9]), []
    for _ in range(60):
        found.append(resize.transform(dict(img=np.zeros((10, 20, 3), np.uint8)))['img_shape'])
    assert set(found) == {(4, 8), (6, 12), (9, 18)}
    assert min(found.count(one) for one in set(found)) > 8


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(scale=[]), 'scale has no length'),
        (dict(scale=[320, 0]), 'scale must be'),
        (dict(scale=320, max_size=-1), 'max_size must be'),
    ],
)
def test_wrong_arguments_say_so(options, message):
    with pytest.raises(InputError, match=message):
        ResizeShortSide(**options)


def ramp(height, width):
    """An image whose pixels say where they are: x and y, and nothing."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def test_a_patch_is_cut_from_the_image_as_loaded():
    boxes = np.array([[0.1, 0.2, 0.3, 0.8], [0.5, 0.0, 1.0, 0.5]], np.float32)
    views = MultiView(
        [[ResizeShortSide(10)], [CropProposal(16)]], num_views=[1, 2], with_boxes=False
    )
    results = views.transform(dict(img=ramp(100, 200), proposals=boxes))
    image, first, second = results['img']
    assert image.shape == (10, 20, 3) and first.shape == second.shape == (16, 16, 3)
    assert 'view_boxes' not in results
    for patch, (x0, y0, x1, y1) in ((first, (20, 20, 60, 80)), (second, (100, 0, 200, 50))):
        x, y = patch[..., 0].astype(float), patch[..., 1].astype(float)
        # a linear ramp is the same after a resize, but at its ends
        place = (np.arange(16) + 0.5) / 16
        assert np.abs(x[8, 2:-2] - (x0 + place * (x1 - x0) - 0.5)[2:-2]).max() <= 1
        assert np.abs(y[2:-2, 8] - (y0 + place * (y1 - y0) - 0.5)[2:-2]).max() <= 1


def test_a_patch_of_no_pixel_shows_one():
    box = np.array([[0.501, 0.501, 0.502, 0.502]], np.float32)
    results = CropProposal(4, first_view=0).transform(dict(img=ramp(10, 10), proposals=box))
    assert results['img'].shape == (4, 4, 3)
    assert (results['img'] == [5, 5, 0]).all()


def test_too_few_proposals_say_so():
    views = MultiView([[ResizeShortSide(8)], [CropProposal(8)]], [1, 3], with_boxes=False)
    results = dict(img=ramp(20, 20), proposals=np.array([[0, 0, 1, 1]] * 2, np.float32))
    with pytest.raises(InputError, match='an image has 2 proposals, the view asks for number 3'):
        views.transform(results)
    with pytest.raises(InputError, match='an image has 0 proposals'):
        views.transform(dict(img=ramp(20, 20)))


def test_random_proposals_are_the_patches():
    np.random.seed(0)
    load = LoadProposals(source='random', max_num=3)
    results = load.transform(dict(img=ramp(40, 60), img_path='a.jpg', img_shape=(40, 60)))
    views = MultiView([[ResizeShortSide(8)], [CropProposal(8)]], [1, 3], with_boxes=False)
    results = views.transform(results)
    for patch, (x0, y0, x1, y1) in zip(results['img'][1:], results['proposals']):
        assert abs(patch[..., 0].mean() + 0.5 - 60 * (x0 + x1) / 2) < 0.6
        assert abs(patch[..., 1].mean() + 0.5 - 40 * (y0 + y1) / 2) < 0.6


def batch():
    """Two images of different sizes, with a patch each."""
    rng = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (10, 6)]
    images = [torch.randint(1, 256, (3, *s), generator=rng, dtype=torch.uint8) for s in sizes]
    patches = torch.randint(1, 256, (2, 3, 4, 4), generator=rng, dtype=torch.uint8)
    return images, [
        dict(inputs=[image, patch], data_samples=DataSample())
        for image, patch in zip(images, patches)
    ]


def test_pad_collate():
    images, samples = batch()
    found = pad_collate(samples)
    padded, patches = found['inputs']
    assert padded.shape == (2, 3, 10, 12) and patches.shape == (2, 3, 4, 4)
    for image, one, sample in zip(images, padded, found['data_samples']):
        height, width = image.shape[1:]
        assert torch.equal(one[:, :height, :width], image)
        assert one.sum() == image.sum()
        assert sample.view_shapes == [(height, width), (4, 4)]


def test_padding_is_0_after_the_normalisation():
    images, samples = batch()
    preprocess = SelfSupDataPreprocessor(mean=[10, 20, 30], std=[2, 4, 8])
    padded, patches = preprocess(pad_collate(samples))['inputs']
    mean, std = torch.tensor([10, 20, 30])[:, None, None], torch.tensor([2, 4, 8])[:, None, None]
    for image, one in zip(images, padded):
        height, width = image.shape[1:]
        torch.testing.assert_close(one[:, :height, :width], (image - mean) / std)
        assert (one != 0).sum() <= image.numel()
        assert not one[:, height:].any() and not one[:, :, width:].any()
    torch.testing.assert_close(patches[0], (samples[0]['inputs'][1] - mean) / std)
