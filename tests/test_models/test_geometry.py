# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import sys

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mmengine.structures import BaseDataElement
from torchvision.ops import roi_align

from mmdense.models.utils import (
    align_maps,
    from_view,
    grid_centers,
    grid_distances,
    is_flipped,
    overlap_in_view,
    to_view,
    view_boxes,
)
from mmdense.utils.errors import InputError

GRID = (7, 5)


@st.composite
def boxes(draw, number=1):
    """Signed boxes 1×4, float64; sides of at least 0.05."""
    drawn = []
    for _ in range(number):
        sides = []
        for _ in range(2):
            low = draw(st.integers(0, 950))
            high = draw(st.integers(low + 50, 1000))
            low, high = low / 1000, high / 1000
            sides.append((high, low) if draw(st.booleans()) else (low, high))
        (x0, x1), (y0, y1) = sides
        drawn.append(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64))
    return drawn[0] if number == 1 else drawn


def mirror(box, upside_down=False):
    return box[:, [0, 3, 2, 1] if upside_down else [2, 1, 0, 3]]


def mirrored_cells(grid, upside_down=False):
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    return cells.flip(0 if upside_down else 1).flatten()


@given(boxes(2))
def test_swapping_the_views_transposes_the_distances(pair):
    a, b = pair
    there, back = grid_distances(a, b, GRID, (4, 6)), grid_distances(b, a, (4, 6), GRID)
    torch.testing.assert_close(there, back.transpose(1, 2))


@given(boxes(2), st.booleans())
def test_flipping_both_views_permutes_cells_and_nothing_else(pair, upside_down):
    a, b = pair
    order = mirrored_cells(GRID, upside_down)
    plain = grid_distances(a, b, GRID, GRID)
    flipped = grid_distances(mirror(a, upside_down), mirror(b, upside_down), GRID, GRID)
    torch.testing.assert_close(flipped, plain[:, order][:, :, order])


@given(boxes())
def test_identical_boxes_give_the_identity(box):
    distance = grid_distances(box, box, GRID, GRID)[0]
    assert (distance.diagonal() == 0).all()
    assert torch.equal(distance.argmin(1), torch.arange(35))
    # neighbours are a cell's side away, and the diagonal of a cell is 1
    assert distance[0, 6] == pytest.approx(1, abs=1e-9)
    assert ((distance < 0.7).sum(1) >= 1).all()


@given(boxes(), st.booleans())
def test_a_flipped_twin_shows_the_same_places(box, upside_down):
    centres = grid_centers(box, GRID)
    flipped = grid_centers(mirror(box, upside_down), GRID)
    torch.testing.assert_close(flipped[:, mirrored_cells(GRID, upside_down)], centres)


@given(boxes())
def test_views_and_back(box):
    points = torch.rand(1, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(to_view(from_view(points, box), box), points)
    corners = from_view(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64), box)
    torch.testing.assert_close(corners.flatten(1), box)


@given(boxes(2))
def test_the_overlap_is_the_same_place_in_both_views(pair):
    a, b = pair
    in_a, in_b = overlap_in_view(a, b), overlap_in_view(b, a)
    exists = bool((in_a[:, :2] < in_a[:, 2:]).all())
    assert exists == bool((in_b[:, :2] < in_b[:, 2:]).all())
    assume(exists)
    assert (in_a > -1e-9).all() and (in_a < 1 + 1e-9).all()
    for in_view, box, other in ((in_a, a, b), (in_b, b, a)):
        corners = from_view(in_view.view(1, 2, 2), box)[0].sort(0).values
        low = torch.maximum(box.view(2, 2).min(0).values, other.view(2, 2).min(0).values)
        high = torch.minimum(box.view(2, 2).max(0).values, other.view(2, 2).max(0).values)
        torch.testing.assert_close(corners, torch.stack([low, high]))


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(boxes(2), st.sampled_from([(7, 7), (4, 6)]))
def test_aligned_maps_of_a_coordinate_image_agree(pair, grid):
    """Every cell of a view's map holds where its centre is; then the aligned
    maps hold the cells of the overlap, upright, to half a cell of the view."""
    a, b = pair
    overlap = overlap_in_view(a, b)
    assume((overlap[:, :2] + 0.02 < overlap[:, 2:]).all())
    shared = from_view(overlap.view(1, 2, 2), a)[0].sort(0).values.view(1, 4)
    truth = grid_centers(shared, grid).transpose(1, 2).view(1, 2, *grid)
    for box, other in ((a, b), (b, a)):
        maps = grid_centers(box, grid).transpose(1, 2).view(1, 2, *grid)
        error = (align_maps(maps, box, other) - truth).abs()
        # Exact, but in the outer half of a rim's cell, where there is no neighbour to
        # interpolate with: RoIAlign repeats the rim.
        cell = (box[:, 2:] - box[:, :2]).abs() / torch.tensor(grid[::-1])
        assert (error <= cell[:, :, None, None] / 2 + 1e-9).all()
        places = to_view(truth.flatten(2).transpose(1, 2), box).transpose(1, 2)
        rim = (0.5 / torch.tensor(grid[::-1])).view(1, 2, 1)
        inside = ((places >= rim) & (places <= 1 - rim)).view_as(error)
        assert (error[inside] < 1e-9).all()


@given(boxes())
def test_the_whole_view_aligns_to_itself(box):
    maps = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    expected = maps
    mirrored, upside_down = is_flipped(box)
    expected = expected.flip(3) if mirrored else expected
    expected = expected.flip(2) if upside_down else expected
    torch.testing.assert_close(align_maps(maps, box, box), expected)


def test_without_overlap_the_aligned_maps_are_zero():
    a, b = torch.tensor([[0.0, 0, 0.3, 0.3]]), torch.tensor([[0.9, 0.5, 0.6, 1.0]])
    maps = torch.rand(1, 3, 7, 7, requires_grad=True)
    for first, second in ((a, b), (b, a)):
        aligned = align_maps(maps, first, second)
        assert (aligned == 0).all()
        (grad,) = torch.autograd.grad(aligned.sum(), maps)
        assert (grad == 0).all()


def test_aligned_maps_are_differentiable():
    a, b = torch.tensor([[0.9, 0, 0.1, 0.7]]), torch.tensor([[0.3, 0.2, 1.0, 0.9]])
    maps = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = a.double(), b.double()
    assert torch.autograd.gradcheck(lambda m: align_maps(m, *boxes), maps)


def align_by_roi_align(maps, box, other):
    """The paper's words: RoIAlign of the overlap, then the flip undone; image by image."""
    height, width = maps.shape[2:]
    aligned = []
    for x, one, two in zip(maps, box[:, None], other[:, None]):
        region = overlap_in_view(one, two) * torch.tensor([width, height, width, height])
        region = torch.cat([torch.zeros(1, 1), region], dim=1)
        cut = roi_align(x[None], region, (height, width), sampling_ratio=1, aligned=True)
        mirrored, upside_down = is_flipped(one)
        cut = cut.flip(3) if mirrored else cut
        aligned.append(cut.flip(2) if upside_down else cut)
    return torch.cat(aligned)


@pytest.mark.parametrize('one_matrix', [0, 10**9], ids=['by side', 'one matrix'])
@pytest.mark.parametrize('grid', [(7, 7), (5, 9), (20, 16), (1, 1)])
@pytest.mark.parametrize('format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_aligned_maps_are_roi_aligns(format, grid, one_matrix, monkeypatch):
    """By one matrix, as small maps are, and by one for each side: maps and gradients, in the memory
    format of the maps."""
    monkeypatch.setattr(sys.modules['mmdense.models.utils.geometry'], '_ONE_MATRIX', one_matrix)
    a = torch.tensor([[0.9, 0.0, 0.1, 0.7], [0.2, 0.8, 0.8, 0.1], [0.0, 0.1, 0.6, 0.9]])
    b = torch.tensor([[0.3, 0.2, 1.0, 0.9], [0.7, 0.6, 0.1, 0.3], [0.2, 0.2, 0.5, 0.5]])
    maps = torch.randn(3, 4, *grid).contiguous(memory_format=format).requires_grad_()
    weight = torch.randn(3, 4, *grid)
    for box, other in ((a, b), (b, a)):
        assert align_maps(maps, box, other).is_contiguous(memory_format=format)
        ours, theirs = align_maps(maps, box, other), align_by_roi_align(maps, box, other)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        (grad,), (expected,) = (
            torch.autograd.grad((x * weight).sum(), maps) for x in (ours, theirs)
        )
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_change_aligned_maps():
    a, b = torch.tensor([[0.93, 0, 0.11, 0.7]]), torch.tensor([[0.3, 0.2, 1.0, 0.9]])
    maps = torch.rand(1, 2, 7, 7)
    with torch.autocast('cpu', torch.bfloat16):
        aligned = align_maps(maps, a, b)
    assert torch.equal(aligned, align_maps(maps, a, b))


def test_half_precision_maps_are_aligned_in_single():
    a, b = torch.tensor([[0.93, 0, 0.11, 0.7]]), torch.tensor([[0.3, 0.2, 1.0, 0.9]])
    maps = torch.rand(1, 2, 7, 7).half()
    torch.testing.assert_close(align_maps(maps, a, b), align_maps(maps.float(), a, b))


def test_boxes_from_data_samples():
    samples = [BaseDataElement(metainfo=dict(view_boxes=torch.rand(2, 4))) for _ in range(3)]
    first, second = view_boxes(samples, 2, like=torch.zeros(1))
    assert first.shape == second.shape == (3, 4)
    assert torch.equal(second[1], samples[1].view_boxes[1])


@pytest.mark.parametrize('samples', [None, [BaseDataElement()], [None]])
def test_missing_boxes_say_what_to_do(samples):
    with pytest.raises(InputError, match='carry no boxes of the views: use'):
        view_boxes(samples, 2, like=torch.zeros(1))


def test_wrong_boxes_say_so():
    samples = [BaseDataElement(metainfo=dict(view_boxes=torch.rand(3, 4)))]
    with pytest.raises(InputError, match=r'view_boxes must be 2×4.*\(3, 4\)'):
        view_boxes(samples, 2, like=torch.zeros(1))
