# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-D: DenseCL's losses, and RegionCL-M's of the mixed view."""

import numpy as np
import pytest
import torch
from recipes import load_recipe
from regioncl_draws import draw_by_process
from tiny_algorithms import PAIRS, Tiny, health_names

from mmdense.registry import MODELS

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    neck = dict(type='DenseCLNeck', in_channels=64, hid_channels=16, out_channels=8)
    dim, grid = 8, 9
    keys = grid * 64 + dim + dim * grid + dim  # map, key, dense keys, their mean

    def calls(image, patches, seen):
        # images to be encoded elsewhere, and back; both queues' keys
        return [
            ('all_to_all_single', 3 * image * 4),
            ('all_to_all_single', 3 * keys * 4),
            ('all_gather', 3 * 2 * dim * 4),
        ]

    return Tiny(
        algorithm='RegionCLD',
        family='queue',
        parts=lambda norm: dict(
            neck=neck, head=dict(type='InfoNCEHead'), queue_len=13, feat_dim=dim
        ),
        recipe='regioncld_r50_coco',
        options=['model.neck.in_channels=512', 'model.neck.hid_channels=64', 'model.queue_len=64'],
        health=[*health_names(global_=PAIRS, dense=PAIRS, region=PAIRS), 'match_entropy'],
        losses=['loss_single', 'loss_dense', 'loss_region'],
        fix=draw_by_process,
        own=['regioncl'],
        calls=calls,
    )


def config(kind, neck='DenseCLNeck', **changes):
    return dict(
        type=kind,
        backbone=dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type=neck, in_channels=64, hid_channels=32, out_channels=16),
        head=dict(type='InfoNCEHead', temperature=0.2),
        queue_len=64,
        feat_dim=16,
        **changes,
    )


def gradients(model, views, names):
    np.random.seed(3)
    losses = model.loss(views)
    sum(losses[name] for name in names).backward()
    return losses, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    'other, neck, names',
    [
        ('DenseCL', 'DenseCLNeck', ('loss_single', 'loss_dense')),
        ('RegionCL', 'mmpretrain.MoCoV2Neck', ('loss_region',)),
    ],
)
def test_it_is_the_sum_of_both(other, neck, names):
    """Losses, gradients and queues of equal weights and the same rectangle."""
    changes = dict(loss_lambda=0.3) if other == 'DenseCL' else {}
    ours, theirs = (
        MODELS.build(config('RegionCLD', loss_lambda=0.3)),
        MODELS.build(config(other, neck, **changes)),
    )
    state = theirs.state_dict()
    state.update({k: v for k, v in ours.state_dict().items() if k in state})
    theirs.load_state_dict(state)
    views = list(torch.randn(2, 4, 3, 64, 64))
    losses, grads = gradients(ours, views, names)
    expected, expected_grads = gradients(theirs, views, names)
    for name in names:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-5)
    assert expected_grads.keys() == grads.keys()
    for name, grad in expected_grads.items():
        # BatchNorm over a few locations amplifies rounding on the way down
        assert (grads[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-6, name
    for name, queue in theirs.state_dict().items():
        if name.startswith('queue'):
            torch.testing.assert_close(ours.state_dict()[name], queue, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'path, batch, lr, epochs',
    [
        ('configs/regioncld_r50_in1k.py', 1024, 0.12, 200),
        ('configs/regioncld_r50_coco.py', 256, 0.3, 800),
    ],
)
def test_recipe(path, batch, lr, epochs):
    recipe = load_recipe(path)
    assert recipe.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4
    )
    assert recipe.auto_scale_lr.base_batch_size == batch and recipe.train_cfg.max_epochs == epochs
    assert (recipe.model.loss_lambda, recipe.model.queue_len) == (0.5, 65536)
