# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from PIL import Image

from mmdense.visualization import (
    Panel,
    cut_view,
    draw_correspondence,
    match_errors,
    match_views,
    true_places,
)

SIDE, CELL, GRID = 256, 16, (8, 8)


def position_image():
    """An image whose red and green say where a pixel is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


def oracle(view):
    """A 'backbone' for it: unit vectors that point the same way only in the same place."""
    place = torch.nn.functional.avg_pool2d(view, CELL)[:, :2] / SIDE * np.pi / 2
    x, y = place.unbind(1)
    return (
        torch.stack(
            [x.cos() * y.cos(), x.sin() * y.cos(), x.cos() * y.sin(), x.sin() * y.sin()], 1
        ),
    )


def to_tensor(view):
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)[None].float()


def test_known_translation_and_mirror():
    # view b begins two of a's cells to the right and one below
    a, b = (0, 0, 0.5, 0.5), (0.125, 0.0625, 0.625, 0.5625)
    places, visible = true_places(a, b, GRID, GRID)
    places = places.reshape(8, 8, 2)
    assert places[3, 5].tolist() == [3.5, 2.5]
    assert visible.reshape(8, 8)[1:, 2:].all() and visible.sum() == 7 * 6
    mirrored = (b[2], b[1], b[0], b[3])
    places, same = true_places(a, mirrored, GRID, GRID)
    assert places.reshape(8, 8, 2)[3, 5].tolist() == [8 - 3.5, 2.5]
    assert torch.equal(same, visible)


def test_grids_of_different_sizes():
    whole = (0, 0, 1, 1)
    places, visible = true_places(whole, whole, (2, 3), (4, 6))
    assert places[0].tolist() == [1, 1] and places[-1].tolist() == [5, 3]
    assert visible.all()


@pytest.mark.parametrize('mirror_a', [False, True])
@pytest.mark.parametrize('mirror_b', [False, True])
@pytest.mark.parametrize('box_b', [(0.125, 0.0625, 0.625, 0.5625), (0.1, 0.2, 0.9, 0.85)])
def test_oracle_finds_the_true_places(mirror_a, mirror_b, box_b):
    boxes = [(0.05, 0.1, 0.55, 0.6), box_b]
    for i, mirror in enumerate((mirror_a, mirror_b)):
        x0, y0, x1, y1 = boxes[i]
        boxes[i] = (x1, y0, x0, y1) if mirror else boxes[i]
    views = [to_tensor(cut_view(position_image(), box, 8 * CELL)) for box in boxes]
    found = match_views(oracle, *views)
    assert found.grid_a == found.grid_b == GRID
    errors = match_errors(found.match[0], *boxes, GRID, GRID)
    visible = true_places(*boxes, GRID, GRID)[1]
    assert torch.equal(errors.isnan(), ~visible) and visible.sum() > 20
    assert errors[visible].max() < 0.75  # the nearest cell: half a diagonal, and rounding
    assert found.similarity[0][visible].min() > 0.99

    # and a wrong match is far from the truth
    wrong = match_errors(found.match[0].flip(0), *boxes, GRID, GRID)[visible]
    assert (wrong > 1).float().mean() > 0.8


def test_cut_view_mirrors_and_scales():
    image = position_image()
    plain = np.asarray(cut_view(image, (0.25, 0, 0.75, 0.5), 64)).astype(int)
    mirrored = np.asarray(cut_view(image, (0.75, 0, 0.25, 0.5), 64)).astype(int)
    assert plain.shape == (64, 64, 3)
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert np.abs(plain[0, [0, -1], 0] - [64.5, 190.5]).max() <= 1
    assert np.abs(plain[[0, -1], 0, 1] - [0.5, 126.5]).max() <= 1


def test_picture(tmp_path):
    torch.manual_seed(0)
    boxes = (0, 0, 0.8, 0.8), (0.2, 0.1, 1, 0.9)
    views = [np.full((128, 128, 3), 90, np.uint8)] * 2
    panels = []
    for name in ('random', 'pretrained'):
        match = torch.randint(0, 64, (64,))
        errors = match_errors(match, *boxes, GRID, GRID)
        panels.append(Panel(name, match, torch.rand(64), errors))
    path = tmp_path / 'picture.png'
    draw_correspondence(*views, panels, GRID, GRID, title='two', path=str(path))
    image = Image.open(path)
    assert image.format == 'PNG' and image.width > 800 and image.height > 800
    pixels = np.asarray(image.convert('RGB')).astype(int)
    for half in np.array_split(pixels[:, : int(0.85 * image.width)], 2, axis=1):
        colourful = np.ptp(half, axis=2) > 60  # the views are grey, the lines are not
        assert 0.005 < colourful.mean() < 0.5


def test_no_more_lines_than_asked_for():
    views = [np.zeros((64, 64, 3), np.uint8)] * 2
    whole = (0, 0, 1, 1)
    match = torch.arange(64)
    panel = Panel('', match, torch.ones(64), match_errors(match, whole, whole, GRID, GRID))
    figure = draw_correspondence(*views, [panel], GRID, GRID, max_lines=10)
    assert sum(type(a).__name__ == 'ConnectionPatch' for a in figure.get_children()) == 10
