# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_algorithms import tiny_form

from mmdense.checkpoints import describe_product
from mmdense.datasets.image_loader import image_loader
from mmdense.evaluation.slots import Picture, Survey, load_slotcon, segment_images, survey
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, DataError, InputError
from mmdense.visualization import draw_groups, draw_nearest, prototype_colours

EXAMPLE = tiny_form()

CONFIG = """
norm = dict(type='BN')
model = dict(
    type='{algorithm}',
    num_prototypes={prototypes},
    data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True),
    backbone=dict(type='mmpretrain.ResNet', depth=18),
    neck=dict(type='ProjectionMLP', in_channels=512, hid_channels=8, out_channels=3),
    head=dict(
        type='SlotContrastHead',
        predictor=dict(
            type='ProjectionMLP', in_channels=3, hid_channels=8, out_channels=3, dense=False)))
"""


def write_checkpoint(path, prototypes=24, **changes):
    """As the hook and MMEngine write one, of random weights."""
    text = CONFIG.format(algorithm='SlotCon', prototypes=prototypes)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(Config.fromstring(text, '.py').model)
    meta = dict(cfg=text, mmdense=describe_product(model))
    content = dict(meta=meta, state_dict=model.state_dict())
    for key, value in changes.items():
        meta[key] = value
    torch.save(content, path)
    return str(path), model


class Colour(torch.nn.Module):
    """A 'projector' whose features are the cell's colour."""

    def forward(self, x):
        return x - 100


@pytest.fixture
def by_colour(tmp_path):
    """A SlotCon with 12 prototypes that knows red, green and blue by the first
    three of them, in cells of 8 pixels."""
    _, model = write_checkpoint(tmp_path / 'c.pth', prototypes=12)
    teacher = model.encoder_k.module
    teacher['backbone'], teacher['neck'] = torch.nn.AvgPool2d(8), Colour()
    weight = torch.full((12, 3), -1.0)
    weight[:3] = 2 * torch.eye(3) - 1
    teacher['grouping'].slot_embed.weight.data = weight
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """Five images: half red and half green, and one that is blue, and none of
    the size that is asked for."""
    folder = tmp_path / 'images'
    (folder / 'below').mkdir(parents=True)
    for i in range(4):
        pixels = np.zeros((96, 128, 3), np.uint8)
        pixels[:, :64, 0] = 220
        pixels[:, 64:, 1] = 255 - 20 * i
        Image.fromarray(pixels).save(folder / f'{i}.png')
    blue = np.zeros((64, 64, 3), np.uint8)
    blue[..., 2] = 255
    Image.fromarray(blue).save(folder / 'below' / 'blue.png')
    return folder


def test_counts_pixels_and_ranks_segments(by_colour, folder):
    (folder / '1b.png').write_bytes(b'no image')
    loader = image_loader(str(folder), 64, batch_size=2)
    found = survey(by_colour, loader, nearest=5)
    # 0 1 1b 2 3 below/blue
    assert found.readable == [0, 1, 3, 4, 5]
    ((path, reason),) = found.unreadable
    assert path.endswith('1b.png') and 'not an image' in reason
    share = found.pixels / found.pixels.sum()
    assert share[:3].tolist() == pytest.approx([0.4, 0.4, 0.2], abs=0.02)
    assert not found.pixels[3:].any() and found.pixels.sum() == 5 * 64 * 64
    # green of 195 to 255: the nearer to 200 the more alike to (-1, 1, -1)
    assert found.images[1, :4].tolist() == [4, 3, 1, 0]
    assert found.images[2].tolist()[:1] == [5] and found.scores[2, 1] == -torch.inf
    assert (found.scores[1, :3] >= found.scores[1, 1:4]).all()
    assert (found.scores[3:] == -torch.inf).all()
    entropy = -sum(p * np.log2(p) for p in (0.4, 0.4, 0.2))
    assert found.entropy() == pytest.approx(entropy, abs=0.03)

    pictures = segment_images(by_colour, loader, [0, 5, 0])
    assert sorted(pictures) == [0, 5] and pictures[5].path.endswith('blue.png')
    assert (pictures[0].labels[:, :30] == 0).all() and (pictures[0].labels[:, 36:] == 1).all()
    assert pictures[0].image[10, 10].tolist() == [220, 0, 0]  # RGB


def test_segments_smaller_than_a_cell_are_no_neighbours(by_colour, folder):
    model, loader = by_colour, image_loader(str(folder), 64)

    def scores(images):  # one cell at a corner, 8 of 8×8 pixels as large
        maps = torch.zeros(len(images), 12, 8, 8)
        maps[:, 0] = 0.5
        maps[:, 1, 0, 0] = 0.51
        return maps

    model.teacher_scores = scores
    found = survey(model, loader)
    assert 0 < found.pixels[1] < 5 * 64
    assert (found.scores[1] == -torch.inf).all() and (found.scores[0, :5] > 0).all()


def test_entropy_of_one_and_of_all():
    def entropy(*pixels):
        pixels = torch.tensor(pixels, dtype=torch.float64)
        return Survey(pixels, None, None, [], []).entropy()

    assert entropy(0, 9, 0, 0) == 0 and entropy(3, 3, 3, 3) == 2


def test_colours_of_the_most_used_differ_most():
    pixels = torch.zeros(2048)
    pixels[[700, 3, 90, 2000]] = torch.tensor([9.0, 8, 7, 6])
    colours = prototype_colours(pixels)
    assert colours.shape == (2048, 3) and colours.min() >= 0 and colours.max() <= 1
    most = colours[[700, 3, 90, 2000]]
    assert min(np.abs(a - b).max() for i, a in enumerate(most) for b in most[:i]) > 0.4
    assert np.array_equal(colours, prototype_colours(pixels))


@pytest.mark.parametrize('prototypes, images', [(256, 1), (2048, 3), (256, 12)])
def test_pictures(tmp_path, prototypes, images):
    rng = np.random.default_rng(0)
    pictures = {}
    for i in range(images):
        labels = np.kron(rng.integers(0, prototypes, (4, 4)), np.ones((16, 16), int))
        labels[:20] = 7
        image = np.full((64, 64, 3), 90, np.uint8)
        pictures[i] = Picture(f'a/{"long_name_" * 9}{i}.jpg', image, labels)
    pixels = torch.zeros(prototypes)
    pixels[7] = 100
    scores, indices = torch.full((prototypes, 3), -torch.inf), torch.full((prototypes, 3), -1)
    scores[7, :images], indices[7, :images] = 0.5, torch.arange(images)[:3]
    found = Survey(pixels, scores, indices, list(range(images)), [])
    colours = prototype_colours(pixels)
    figure = draw_groups(
        list(pictures.values()), colours, 'title', path=str(tmp_path / 'groups.png')
    )
    numbers = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert numbers.count('7') == images
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 2 * images and max(map(len, titles)) <= 26
    figure = draw_nearest(
        found, [7], pictures, colours, 'title', path=str(tmp_path / 'nearest.png')
    )
    assert figure.axes[0].get_ylabel() == 'prototype 7\n100.0% of pixels'
    for name in ('groups', 'nearest'):
        image = Image.open(tmp_path / f'{name}.png')
        assert image.format == 'PNG' and image.width > 700
        pixels = np.asarray(image.convert('RGB')).astype(int)
        assert (np.ptp(pixels, axis=2) > 60).mean() > 0.002  # the images are grey, groups are not


def test_loads_what_training_writes(tmp_path):
    path, model = write_checkpoint(tmp_path / 'a.pth')
    loaded = load_slotcon(path)
    assert not loaded.training
    theirs = model.encoder_k.module.state_dict()
    for key, value in loaded.encoder_k.module.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_config_in_a_checkpoint_is_not_run(tmp_path):
    ran = tmp_path / 'ran'
    path, _ = write_checkpoint(
        tmp_path / 'a.pth', cfg=f"import os\nmodel = dict(type=os.mkdir('{ran}'))"
    )
    with pytest.raises(CheckpointError, match='does not say with which model it was trained'):
        load_slotcon(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(cfg=None), 'give the config of the run, --config'),
        (dict(cfg='model = ['), 'give the config of the run, --config'),
        (
            dict(mmdense=dict(algorithm=EXAMPLE.algorithm)),
            f'a.pth is of {EXAMPLE.algorithm}, which has no prototypes',
        ),
        (
            dict(cfg=CONFIG.format(algorithm='SlotCon', prototypes=25)),
            r"1 of the teacher's tensors differ, first grouping.slot_embed.weight \(file: \(24,",
        ),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, changes, words):
    path, _ = write_checkpoint(tmp_path / 'a.pth', **changes)
    with pytest.raises(CheckpointError, match=words):
        load_slotcon(path)


def test_other_files_are_refused(tmp_path):
    torch.save(dict(state_dict={'conv1.weight': torch.ones(1)}), tmp_path / 'backbone.pth')
    with pytest.raises(CheckpointError, match='not an exported backbone'):
        load_slotcon(str(tmp_path / 'backbone.pth'))
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds no SlotCon'):
        load_slotcon(str(tmp_path / 'list.pth'))
    path, _ = write_checkpoint(tmp_path / 'a.pth')
    (tmp_path / 'config.py').write_text(f'model = dict(type={EXAMPLE.algorithm!r})')
    with pytest.raises(InputError, match=f'config.py is {EXAMPLE.algorithm}, not SlotCon'):
        load_slotcon(path, str(tmp_path / 'config.py'))
    with pytest.raises(DataError, match='no image found'):
        (tmp_path / 'empty').mkdir()
        image_loader(str(tmp_path / 'empty'), 64)
