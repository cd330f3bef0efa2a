# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-S: SimSiam's loss, and the same of swapped regions."""

import pytest
import torch
from recipes import load_recipe
from regioncl_draws import InOrder, draw_by_process, use_region
from tiny_algorithms import PAIRS, Tiny, health_names

from mmdense.registry import MODELS

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        projector, head = networks(64, 16, 16, 16, norm)
        return dict(neck=projector, head=head)

    return Tiny(
        algorithm='RegionCLS',
        family='siamese',
        parts=parts,
        recipe='regioncls_r50_coco',
        options=[
            'model.neck.in_channels=512',
            *(f'model.neck.{name}=64' for name in ('hid_channels', 'out_channels')),
            *(f'model.head.predictor.{name}=64' for name in ('in_channels', 'out_channels')),
            'model.head.predictor.hid_channels=16',
        ],
        health=health_names(global_=PAIRS, region=PAIRS),
        losses=['loss_instance', 'loss_region'],
        collapses=False,  # its last BatchNorm has no scale and no shift
        fix=draw_by_process,
        own=['regioncl'],
        passes=4,
    )


def networks(in_channels, hidden, channels, predictor_hidden, norm=None):
    """Return the configs of the projector and of the head, as SimSiam's."""
    norm = norm or dict(type='BN')
    norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
    mlp = dict(type='mmpretrain.NonLinearNeck', norm_cfg=norm)
    projector = dict(
        mlp,
        in_channels=in_channels,
        hid_channels=hidden,
        out_channels=channels,
        num_layers=3,
        with_last_bn_affine=False,
    )
    predictor = dict(
        mlp,
        in_channels=channels,
        hid_channels=predictor_hidden,
        out_channels=channels,
        with_avg_pool=False,
        with_last_bn=False,
        with_last_bias=True,
    )
    loss = dict(type='mmpretrain.CosineSimilarityLoss')
    return projector, dict(type='mmpretrain.LatentPredictHead', loss=loss, predictor=predictor)


def config(sizes=(64, 32, 32, 8)):
    neck, head = networks(*sizes)
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    return dict(type='RegionCLS', backbone=backbone, neck=neck, head=head)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def our_name(name):
    """Return our name of a golden's tensor, as ``proj_3_weight``."""
    part, number, kind = name.split('_')
    layer = ('fc', 'bn')[int(number) % 3]
    return f'{dict(proj="neck", pred="head.predictor")[part]}.{layer}{int(number) // 3}.{kind}'


def test_golden_losses(golden):
    """Losses and gradients, through loss() itself."""
    g = golden('regioncl_simsiam_ours')
    first, last, hidden = g['proj_0_weight'], g['proj_6_weight'], g['pred_0_weight']
    model = MODELS.build(config((first.size(1), first.size(0), last.size(0), hidden.size(0))))
    weights = {our_name(k): v for k, v in g.items() if k.startswith(('proj_', 'pred_'))}
    found = model.load_state_dict(weights, strict=False)
    parts = ('neck.', 'head.')
    left = [k for k in found.missing_keys if k.startswith(parts) and k.endswith(('weight', 'bias'))]
    assert not left and not found.unexpected_keys
    names = ('maps_1', 'maps_2', 'swapped_1', 'swapped_2')
    maps = {name: g[name].requires_grad_() for name in names}
    model.backbone = InOrder(*maps.values())
    cells = tuple(g['region_cells'].tolist())
    use_region(model, cells)
    n, side = len(g['maps_1']), 4 * g['maps_1'].size(3)
    views = list(torch.randn(2, n, 3, side, side))
    losses = model.loss(views)
    for name in ('loss_instance', 'loss_region'):
        close(losses[name], g[name], name)
    total = sum(losses.values())
    close(total, g['total'])
    total.backward()
    for name, leaf in maps.items():
        if f'grad_{name}' in g:
            close(leaf.grad, g[f'grad_{name}'], name)
    for name in weights:
        (theirs,) = [k for k in g if k.startswith('grad_pr') and our_name(k[5:]) == name]
        close(model.get_parameter(name).grad, g[theirs], name)
    # the last two passes see the views with one rectangle and the same partners
    assert torch.equal(model.backbone.seen[0], views[0])
    x, y, w, h = (4 * c for c in cells)
    for view, mixed in zip(views, model.backbone.seen[2:]):
        pasted = (..., slice(y, y + h), slice(x, x + w))
        assert torch.equal(mixed[pasted], view.flip(0)[pasted])
        assert (mixed != view).any(1).sum() == (n - n % 2) * w * h


def test_learns():
    """Some steps on one batch bring both losses down, towards -1."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    images = torch.randn(8, 3, 64, 64)
    for step in range(12):
        losses = model.loss([images + 0.1 * torch.randn_like(images) for _ in range(2)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if not step:
            first = {name: loss.item() for name, loss in losses.items()}
    assert all(loss < first[name] - 0.2 for name, loss in losses.items()), (first, losses)


@pytest.mark.parametrize(
    'path, epochs, images',
    [
        ('configs/regioncls_r50_in1k.py', 200, ('data/imagenet', 'train')),
        ('configs/regioncls_r50_coco.py', 800, ('data/coco', 'train2017')),
    ],
)
def test_recipe(path, epochs, images):
    """SimSiam's, in which the predictor's learning rate is constant."""
    recipe = load_recipe(path)
    assert recipe.train_cfg.max_epochs == epochs
    dataset = recipe.train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix) == images
    assert recipe.optim_wrapper.optimizer.lr == recipe.default_hooks.predictor_lr.lr == 0.05
    assert recipe.optim_wrapper.paramwise_cfg.custom_keys.predictor.fix_lr
    assert recipe.model.backbone.norm_cfg.type == 'SyncBN'
