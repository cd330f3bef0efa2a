# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Regions against loops in NumPy, for views that are mirrored, cut and elsewhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.structures import DataSample

from mmdense.models.layers import pool_boxes, pool_masks, stack_proposals
from mmdense.models.utils import boxes_in_view, boxes_on_grid, visible_share
from mmdense.utils.errors import InputError

GRID = (7, 5)
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


def interpolate(plane, y, x):
    """Bilinear, of locations whose centers are at whole numbers; 0 a location beyond the border."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - top, x - left
    rows = plane[top : top + 2, left : left + 2]
    return (1 - dy) * ((1 - dx) * rows[0, 0] + dx * rows[0, 1]) + dy * (
        (1 - dx) * rows[1, 0] + dx * rows[1, 1]
    )


def reference(maps, boxes, view, size):
    """RoIAlign by loops: regions N×R×C×size×size, visible shares N×R."""
    maps, boxes, view = maps.numpy(), boxes.numpy(), view.numpy()
    (number, channels, height, width), per_image = maps.shape, boxes.shape[1]
    regions = np.zeros((number, per_image, channels, size, size))
    shares = np.zeros((number, per_image))
    for n in range(number):
        for r in range(per_image):
            low, high, whole = [], [], 1.0
            for axis, side in ((0, width), (1, height)):
                start, end = view[n, axis], view[n, axis + 2]
                edges = sorted((boxes[n, r, i] - start) / (end - start) for i in (axis, axis + 2))
                whole *= edges[1] - edges[0]
                low.append(min(max(edges[0], 0), 1) * side)
                high.append(min(max(edges[1], 0), 1) * side)
            w, h = high[0] - low[0], high[1] - low[1]
            shares[n, r] = w * h / (width * height) / whole if whole > 0 else 0
            if shares[n, r] <= 0:
                continue
            rows, columns = max(math.ceil(h / size), 1), max(math.ceil(w / size), 1)
            for i in range(size):
                for j in range(size):
                    samples = [
                        (
                            low[1] - 0.5 + (i + (a + 0.5) / rows) * h / size,
                            low[0] - 0.5 + (j + (b + 0.5) / columns) * w / size,
                        )
                        for a in range(rows)
                        for b in range(columns)
                    ]
                    for c in range(channels):
                        values = [interpolate(maps[n, c], y, x) for y, x in samples]
                        regions[n, r, c, i, j] = np.mean(values)
    return regions, shares


def draw(seed, number=2, per_image=4):
    """Maps, boxes (some without an area), and views that may be mirrored or upside down."""
    rng = np.random.RandomState(seed)
    maps = rng.standard_normal((number, 3, *GRID))
    corners = np.sort(rng.uniform(0, 1, (number, per_image, 2, 2)), axis=2).reshape(-1, 4)
    boxes = corners.reshape(number, per_image, 4)
    boxes[0, 0, 2:] = boxes[0, 0, :2]
    low = rng.uniform(0, 0.6, (number, 2))
    views = np.concatenate([low, low + rng.uniform(0.1, 0.4, (number, 2))], axis=1)
    for view in views:
        order = [[0, 1, 2, 3], [2, 1, 0, 3], [0, 3, 2, 1], [2, 3, 0, 1]][rng.randint(4)]
        view[:] = view[order]
    return [torch.from_numpy(x) for x in (maps, boxes, views)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.6]))
def test_boxes_against_loops(seed, size, min_visible):
    maps, boxes, view = draw(seed)
    regions, valid = pool_boxes(maps, boxes, view, size=size, min_visible=min_visible)
    expected, shares = reference(maps, boxes, view, size)
    torch.testing.assert_close(
        visible_share(boxes_in_view(boxes, view)), torch.from_numpy(shares), rtol=1e-9, atol=1e-12
    )
    assert valid.tolist() == (shares > min_visible).tolist()
    expected = torch.from_numpy(expected).flatten(2) * valid[..., None]
    torch.testing.assert_close(regions, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('order', [[2, 1, 0, 3], [0, 3, 2, 1], [2, 3, 0, 1]])
def test_a_mirrored_view_shows_the_same_regions(order):
    """A mirrored view's map is the other's mirrored; means over boxes are equal."""
    maps, boxes, view = draw(3)
    view = torch.cat(
        [torch.minimum(view[:, :2], view[:, 2:]), torch.maximum(view[:, :2], view[:, 2:])], 1
    )
    axes = [axis for axis, i in ((3, 0), (2, 1)) if order[i] != i]
    plain, valid = pool_boxes(maps, boxes, view)
    mirrored, also_valid = pool_boxes(maps.flip(axes), boxes, view[:, order])
    assert valid.any() and torch.equal(valid, also_valid)
    torch.testing.assert_close(mirrored, plain, rtol=1e-9, atol=1e-9)
    # bins are in the view's orientation
    bins = pool_boxes(maps, boxes, view, size=2)[0].unflatten(2, (3, 2, 2))
    other = pool_boxes(maps.flip(axes), boxes, view[:, order], size=2)[0].unflatten(2, (3, 2, 2))
    torch.testing.assert_close(other.flip([axis + 1 for axis in axes]), bins, rtol=1e-9, atol=1e-9)


def test_a_box_that_is_the_view_is_the_mean_of_its_map():
    maps, _, view = draw(5)
    ordered = torch.cat(
        [torch.minimum(view[:, :2], view[:, 2:]), torch.maximum(view[:, :2], view[:, 2:])], 1
    )
    regions, valid = pool_boxes(maps, ordered[:, None], view)
    assert valid.all()
    torch.testing.assert_close(regions[:, 0], maps.mean((2, 3)), rtol=1e-9, atol=1e-9)
    # by one rounding too large, RoIAlign would take more samples
    regions, _ = pool_boxes(maps.float(), ordered[:, None].float() + 1e-7, view.float(), size=5)
    assert regions.isfinite().all()


def test_out_of_view_and_padding_are_zero_and_get_no_gradient():
    maps, _, _ = draw(0, number=1)
    maps.requires_grad_()
    view = torch.tensor([[0.5, 0.0, 0.0, 1.0]], dtype=torch.float64)  # the left half, mirrored
    boxes = torch.tensor(
        [[[0.6, 0.2, 0.9, 0.8], [0.5, 0, 1, 1], [0.4, 0.1, 0.6, 0.3], [0.1, 0.1, 0.3, 0.3]]],
        dtype=torch.float64,
    )
    exists = torch.tensor([[True, True, True, False]])
    regions, valid = pool_boxes(maps, boxes, view, exists)
    assert valid.tolist() == [[False, False, True, False]]
    assert not regions[0, [0, 1, 3]].any() and regions[0, 2].any()
    regions[0, [0, 1, 3]].sum().backward()
    assert not maps.grad.any()
    # the box's visible half is at the left border of the mirrored view
    pool_boxes(maps, boxes, view, exists)[0].sum().backward()
    assert maps.grad[..., :2].any() and not maps.grad[..., 2:].any()
    assert not pool_boxes(maps, boxes, view, exists, min_visible=0.5)[1].any()  # half is not more
    assert pool_boxes(maps, boxes, view, exists, min_visible=0.49)[1].any()


def test_gradients():
    maps, boxes, view = draw(11)
    maps = maps[:, :1].clone().requires_grad_()
    boxes.requires_grad_()
    torch.autograd.gradcheck(lambda x: pool_boxes(x, boxes.detach(), view, size=2)[0], maps)
    masks = torch.rand(2, 3, *GRID, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: pool_masks(x, masks)[0], maps)
    assert not pool_boxes(maps.detach(), boxes, view)[0].requires_grad


def test_no_proposals():
    maps, _, view = draw(0)
    maps.requires_grad_()
    regions, valid = pool_boxes(maps, torch.zeros(2, 0, 4, dtype=torch.float64), view, size=7)
    assert regions.shape == (2, 0, 3 * 49) and valid.shape == (2, 0)
    regions.sum().backward()
    assert not maps.grad.any()
    regions, valid = pool_masks(maps, torch.zeros(2, 0, *GRID))
    assert regions.shape == (2, 0, 3) and valid.shape == (2, 0)


def test_masks_against_loops():
    maps, _, _ = draw(2)
    masks = torch.rand(2, 4, *GRID) > 0.7
    masks[1, 2] = False
    regions, valid = pool_masks(maps, masks)
    for n in range(2):
        for r in range(4):
            here = maps[n][:, masks[n, r]]
            assert valid[n, r] == (here.numel() > 0)
            expected = here.mean(1) if valid[n, r] else torch.zeros(3).double()
            torch.testing.assert_close(regions[n, r], expected)
    assert not valid[1, 2] and valid.sum() == 7
    weights = torch.rand(2, 1, *GRID, dtype=torch.float64)
    expected = (maps * weights).sum((2, 3)) / weights.sum((2, 3))
    torch.testing.assert_close(pool_masks(maps, weights)[0][:, 0], expected)


def test_half_precision():
    """Boxes keep their precision, and means over masks are float32."""
    maps, boxes, view = (x.float() for x in draw(4))
    exact = pool_boxes(maps.bfloat16().float(), boxes, view)[0]
    assert torch.equal(pool_boxes(maps.bfloat16(), boxes, view)[0], exact)
    masks = torch.rand(2, 4, *GRID) > 0.5
    exact = pool_masks(maps.bfloat16().float(), masks)[0]
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(pool_masks(maps.bfloat16(), masks)[0], exact)


def test_boxes_on_grid():
    boxes = torch.tensor([[[-0.5, 0.25, 0.5, 1.0 + 1e-7]]])
    assert boxes_on_grid(boxes, (4, 8)).tolist() == [[[0, 1, 4, 4]]]


def test_stack_proposals():
    samples = [DataSample(), DataSample(), DataSample()]
    for sample, number in zip(samples, (2, 0, 3)):
        sample.set_field(torch.rand(number, 4), 'proposals')
    boxes, exists = stack_proposals(samples, torch.zeros(1))
    assert boxes.shape == (3, 3, 4)
    assert exists.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for n, sample in enumerate(samples):
        assert torch.equal(boxes[n][exists[n]], sample.proposals)
        assert not boxes[n][~exists[n]].any()
    boxes, exists = stack_proposals(samples[1:2], torch.zeros(1))
    assert boxes.shape == (1, 0, 4) and exists.shape == (1, 0)
    with pytest.raises(InputError, match='carry no proposals: put LoadProposals after LoadImage'):
        stack_proposals([*samples, DataSample()], torch.zeros(1))


def test_wrong_shapes():
    maps, boxes, view = draw(0)
    with pytest.raises(InputError, match='pool_boxes takes maps N×C×H×W'):
        pool_boxes(maps, boxes[:1], view)
    with pytest.raises(InputError, match='pool_boxes takes maps N×C×H×W'):
        pool_boxes(maps, boxes, view[:1])
    with pytest.raises(InputError, match='pool_masks takes maps N×C×H×W'):
        pool_masks(maps, torch.zeros(2, 4, 5, 7))
