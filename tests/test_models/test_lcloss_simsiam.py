# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""LC-loss on SimSiam: SimSiam's loss, and the local loss in both directions."""

import pytest
import torch
from local_parts import local_parts, options
from mmengine.optim import build_optim_wrapper
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names

from mmdense.registry import MODELS

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='LCLossSimSiam',
        family='siamese',
        parts=parts,
        recipe='lcloss_simsiam_coco',
        options=[
            *options('local_head.predictor'),
            'model.neck.projector.out_channels=64',
            *(f'model.head.predictor.{name}=64' for name in ('in_channels', 'out_channels')),
            'model.head.predictor.hid_channels=16',
        ],
        health=[*health_names(global_=PAIRS, dense=PAIRS), 'without_positive'],
        losses=['loss_global', 'loss_local'],
        collapses=False,  # its last BatchNorm has no scale and no shift
        own=['lcloss', 'local_'],
    )


def parts(norm):
    vectors = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm
    mlp = dict(type='mmpretrain.NonLinearNeck', norm_cfg=vectors, hid_channels=16, out_channels=16)
    projector = dict(mlp, num_layers=3, with_last_bn_affine=False)
    predictor = dict(mlp, in_channels=16, with_avg_pool=False, with_last_bn=False)
    loss = dict(type='mmpretrain.CosineSimilarityLoss')
    head = dict(type='mmpretrain.LatentPredictHead', loss=loss, predictor=predictor)
    return dict(local_parts(projector, norm), head=head)


def build():
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    model = MODELS.build(dict(type='LCLossSimSiam', backbone=backbone, **parts(dict(type='BN'))))
    model.init_weights()
    return model


def test_losses(two_views):
    """SimSiam's, and both directions of the head, whose targets have no gradient."""
    model, (views, samples) = build(), two_views(n=3)
    losses = model.loss(views, samples)
    (z_1, local_1), (z_2, local_2) = (model.neck(model.backbone(view)) for view in views)
    torch.testing.assert_close(
        losses['loss_global'], (model.head.loss(z_1, z_2) + model.head.loss(z_2, z_1)) / 2
    )
    box_1, box_2 = (torch.stack([s.view_boxes[i] for s in samples]) for i in (0, 1))
    local = model.local_head.loss(local_1, local_2.detach(), box_1, box_2)
    local = 0.1 * (local + model.local_head.loss(local_2, local_1.detach(), box_2, box_1))
    torch.testing.assert_close(losses['loss_local'], local)
    weight = [model.neck.local_projector.mlp[0].weight]
    ours, theirs = (torch.autograd.grad(x, weight)[0] for x in (losses['loss_local'], local))
    torch.testing.assert_close(ours, theirs)


def test_no_gradient_reaches_the_target(two_views):
    """No gradient reaches the local projector where the predictor is constant."""
    model = build()
    with torch.no_grad():
        for parameter in model.local_head.predictor.parameters():
            parameter.zero_()
        model.local_head.predictor.mlp[3].bias.fill_(1)
    model.loss(*two_views(n=3))['loss_local'].backward()
    assert not any(p.grad.any() for p in model.neck.local_projector.parameters())
    assert model.local_head.predictor.mlp[3].bias.grad.any()


def test_recipe():
    """SimSiam's recipe with a local branch, whose predictor has a constant learning rate too."""
    recipe, simsiam = (load_recipe(f'configs/{n}_coco.py') for n in
                       ('lcloss_simsiam', 'simsiam_r50'))  # fmt: skip
    assert {key for key in recipe if recipe[key] != simsiam.get(key)} == {'model'}
    changed = {key for key in recipe.model if recipe.model[key] != simsiam.model.get(key)}
    assert changed == {'type', 'neck', 'local_head', 'local_weight'}
    assert recipe.model.neck.projector == simsiam.model.neck
    model = MODELS.build(recipe.model)
    groups = build_optim_wrapper(model, recipe.optim_wrapper).optimizer.param_groups
    fixed = {id(p) for group in groups if group.get('fix_lr') for p in group['params']}
    predictors = [*model.head.predictor.parameters(), *model.local_head.predictor.parameters()]
    assert fixed == {id(p) for p in predictors}
