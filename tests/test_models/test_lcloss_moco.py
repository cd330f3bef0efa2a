# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""LC-loss on MoCo: MoCo's loss, and the local loss from query to key."""

import pytest
import torch
from local_parts import local_parts, options
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names

from mmdense.models import MoCo
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')
DIM = 8
NECK = dict(type='mmpretrain.MoCoV2Neck', hid_channels=16, out_channels=DIM)


def tiny():
    """Return what the generic tests need."""

    def calls(image, patches, seen):
        # images to be encoded elsewhere; back their keys, and 8 channels of 9 locations
        return [
            ('all_to_all_single', 3 * image * 4),
            ('all_to_all_single', 3 * (DIM + 8 * 9) * 4),
            ('all_gather', 3 * DIM * 4),
        ]

    return Tiny(
        algorithm='LCLossMoCo',
        family='queue',
        parts=parts,
        recipe='lcloss_mocov2_coco',
        options=[*options(), 'model.queue_len=64'],
        health=[*health_names(global_=PAIRS, dense=PAIRS), 'without_positive'],
        losses=['loss_global', 'loss_local'],
        own=['lcloss', 'local_'],
        calls=calls,
    )


def parts(norm):
    rest = dict(head=dict(type='InfoNCEHead'), queue_len=13, feat_dim=DIM)
    return dict(local_parts(NECK, norm, predictor=False), **rest)


def build():
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    model = MODELS.build(dict(type='LCLossMoCo', backbone=backbone, **parts(dict(type='BN'))))
    model.init_weights()
    return model


def test_losses(two_views):
    """MoCo's, and one direction of the head, whose target is the key's map."""
    model, (views, samples) = build(), two_views(n=3)
    queue = model.queue.keys.clone()
    losses = model.loss(views, samples)
    q, local_q = model.neck(model.backbone(views[0]))
    with torch.no_grad():
        k, local_k = model.encoder_k.module(views[1])
    q, k = (torch.nn.functional.normalize(x, dim=1) for x in (q, k))
    expected = model.head.loss(q, k, queue)
    torch.testing.assert_close(losses['loss_global'], expected)
    boxes = [torch.stack([s.view_boxes[i] for s in samples]) for i in (0, 1)]
    local = 0.1 * model.local_head.loss(local_q, local_k, *boxes)
    torch.testing.assert_close(losses['loss_local'], local)
    weight = [model.neck.local_projector.mlp[0].weight]
    ours, theirs = (torch.autograd.grad(x, weight)[0] for x in (losses['loss_local'], local))
    torch.testing.assert_close(ours, theirs)
    assert ours.any()


def test_an_algorithm_that_takes_no_more_losses_says_so(two_views, monkeypatch):
    model = build()
    monkeypatch.setattr(MoCo, 'loss', lambda self, *_, **__: dict(loss=torch.zeros(())))
    with pytest.raises(InputError, match='LCLossMoCo: loss.. of the algorithm behind LocalContras'):
        model.loss(*two_views(n=2))


def test_every_parameter_has_a_gradient(two_views):
    model = build()
    sum(model(*two_views(n=2), mode='loss').values()).backward()
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_recipe():
    """MoCo v2's recipe with a local branch: it has no predictor, and its BatchNorm is plain."""
    recipe, moco = (load_recipe(f'configs/{n}_coco.py') for n in
                    ('lcloss_mocov2', 'mocov2_r50'))  # fmt: skip
    assert {key for key in recipe if recipe[key] != moco.get(key)} == {'model'}
    changed = {key for key in recipe.model if recipe.model[key] != moco.model.get(key)}
    assert changed == {'type', 'neck', 'local_head', 'local_weight'}
    assert recipe.model.neck.projector == moco.model.neck
    assert 'predictor' not in recipe.model.local_head and 'SyncBN' not in str(recipe.model)
