# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""LC-loss on BYOL: the match by the crops, the local loss, and both with BYOL."""

import math

import pytest
import torch
from local_parts import local_parts, options
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn

from mmdense.models import LocalContrastHead
from mmdense.models.utils import match_by_boxes
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='LCLoss',
        family='momentum',
        parts=lambda norm: dict(parts(norm), total_steps=50),
        recipe='lcloss_r50_coco',
        options=[
            *options('head.predictor', 'local_head.predictor'),
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
        ],
        health=[*health_names(global_=PAIRS, dense=PAIRS), 'without_positive'],
        losses=['loss_global', 'loss_local'],
        own=['local_'],
    )


def parts(norm, in_channels=64):
    """Return the configs of neck and heads, as the recipe has them."""
    mlp = dict(type='mmpretrain.NonLinearNeck', hid_channels=16, out_channels=8)
    mlp.update(with_bias=True, with_last_bias=True, with_last_bn=False)
    mlp['norm_cfg'] = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
    predictor = dict(mlp, in_channels=8, with_avg_pool=False)
    head = dict(type='CosinePredictionHead', predictor=predictor)
    return dict(local_parts(mlp, norm, in_channels), head=head)


def config(**changes):
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    cfg = dict(type='LCLoss', backbone=backbone, total_steps=50, **parts(dict(type='BN')))
    return dict(cfg, **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


# The match


@pytest.mark.parametrize('one, other', [('1', '2'), ('2', '1')])
def test_golden_match(golden, one, other):
    g = golden('lcloss_match_ours')
    grids = [tuple(g[f'grid_{view}'].tolist()) for view in (one, other)]
    match, shown = match_by_boxes(g[f'boxes_{one}'], g[f'boxes_{other}'], *grids)
    assert torch.equal(shown, g[f'valid_{one}to{other}'])
    assert torch.equal(match, g[f'match_{one}to{other}'])


def find_by_hand(box, other, grid, other_grid):
    """Return the match of one location after the other, in Python's numbers; −1 is none."""
    found = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            x = box[0] + (column + 0.5) / grid[1] * (box[2] - box[0])
            y = box[1] + (row + 0.5) / grid[0] * (box[3] - box[1])
            u = (x - other[0]) / (other[2] - other[0])
            v = (y - other[1]) / (other[3] - other[1])
            inside = 0 <= u < 1 and 0 <= v < 1
            cell = math.floor(v * other_grid[0]) * other_grid[1] + math.floor(u * other_grid[1])
            found.append(cell if inside else -1)
    return found


def test_match_by_hand(two_views):
    """Also of mirrored views, and of grids that differ and are not square."""
    _, samples = two_views(n=16, seed=3)
    box, other = (torch.stack([s.view_boxes[i] for s in samples]) for i in (0, 1))
    assert (box[:, 0] > box[:, 2]).any() and (other[:, 0] > other[:, 2]).any()
    grids = (3, 5), (7, 4)
    match, shown = match_by_boxes(box, other, *grids)
    expected = [find_by_hand(b, o, *grids) for b, o in zip(box.tolist(), other.tolist())]
    assert torch.where(shown, match, -1).tolist() == expected
    assert 0.1 < shown.float().mean() < 0.9 and not match[~shown].any()


def test_equal_views_match_one_to_one():
    for box in ([0.1, 0.2, 0.7, 0.9], [0.9, 0.3, 0.31, 0.8]):
        box = torch.tensor([box])
        match, shown = match_by_boxes(box, box, (7, 9), (7, 9))
        assert shown.all() and torch.equal(match[0], torch.arange(63))
        # a mirrored view shows the same places, from right to left
        match, shown = match_by_boxes(box, box[:, [2, 1, 0, 3]], (7, 9), (7, 9))
        assert shown.all() and torch.equal(match[0], torch.arange(63).view(7, 9).flip(1).flatten())


# The local loss


def test_golden_local_loss(golden):
    """Loss and gradient of one direction, from projections. Image 1 has no overlap."""
    g = golden('lcloss_local_ours')
    head = LocalContrastHead(temperature=float(g['temperature']))
    z = g['z'].requires_grad_()
    loss = head.loss(z, g['target'], g['boxes_1'], g['boxes_2'])
    close(loss, g['loss'])
    close(torch.autograd.grad(loss, z)[0], g['grad_z'])


BOX = torch.tensor([[0.0, 0.0, 0.5, 0.5]])


def local_loss(box, other, grid=3):
    """Return the loss of two random maps, and its gradient."""
    z, target = torch.randn(2, 1, 8, grid, grid)
    loss = LocalContrastHead().loss(z.requires_grad_(), target, box, other)
    return loss, torch.autograd.grad(loss, z)[0]


def test_without_overlap_the_loss_is_zero():
    loss, grad = local_loss(BOX, BOX + 0.5)
    assert loss == 0 and torch.equal(grad, torch.zeros_like(grad))


def test_one_location_is_enough():
    loss, grad = local_loss(BOX, BOX + torch.tensor([0.4, 0.4, 0.4, 0.4]))
    assert loss > 0 and grad.flatten(2).any(1).sum() == 1


def test_a_map_of_one_location_has_nothing_to_contrast():
    loss, grad = local_loss(BOX, BOX, grid=1)
    assert loss == 0 and torch.isfinite(grad).all()


# With BYOL


class InOrder(nn.Module):
    """A backbone whose maps are given, one a call."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = iter(maps)

    def forward(self, x):
        return (next(self.maps),)


class Projections(nn.Module):
    """A neck that passes the map's mean and the map on."""

    def forward(self, maps):
        return maps[-1].mean((2, 3)), maps[-1]


def golden_model(g, maps, target_maps, hidden, channels, in_channels):
    """Build the model of a golden's sizes, and leave its momentum encoder as it is."""
    cfg = config()
    projectors = cfg['neck']['projector'], cfg['neck']['local_projector']
    predictors = cfg['head']['predictor'], cfg['local_head']['predictor']
    for part in (*projectors, *predictors):
        part.update(hid_channels=hidden, out_channels=channels)
    for part in predictors:
        part['in_channels'] = channels
    cfg['neck']['in_channels'] = in_channels
    if 'temperature' in g:
        cfg['local_head']['temperature'] = float(g['temperature'])
        cfg['local_weight'] = float(g['local_weight'])
    model = MODELS.build(cfg)
    model.backbone = InOrder(*maps)
    model.encoder_k.module[0] = InOrder(*target_maps)
    model.encoder_k.update = lambda online: None
    return model


def views(maps):
    return [torch.zeros(len(maps), 3, 4, 4)] * 2


def test_golden_byol(golden, boxed):
    """The published head's loss is ours without the constant 4."""
    g = golden('lcloss_byol')
    leaves = [g[f'online_{i}'].requires_grad_() for i in (1, 2)]
    maps = [x[:, :, None, None] for x in leaves]
    target_maps = [g[f'target_{i}'][:, :, None, None] for i in (1, 2)]
    hidden, channels = g['param_fc0.weight'].shape
    model = golden_model(g, maps, target_maps, hidden, channels, channels)
    model.neck = model.encoder_k.module[1] = Projections()
    names = [k[len('param_') :] for k in g if k.startswith('param_')]
    for name in names:
        model.head.predictor.get_parameter(name).data.copy_(g[f'param_{name}'])
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(leaves[0]), 1)
    losses = model.loss(views(maps[0]), boxed(box, box))
    assert losses['loss_local'] == 0  # of maps of one location
    close(losses['loss_global'] - 4, g['total'])
    losses['loss_global'].backward()
    for i, leaf in enumerate(leaves, 1):
        close(leaf.grad, g[f'grad_online_{i}'])
    for name in names:
        close(model.head.predictor.get_parameter(name).grad, g[f'grad_{name}'], name)


def our_name(name):
    """Return our name of a golden's parameter, as ``local_predictor.3.weight``."""
    part, layer, kind = name.split('.')
    paths = dict(
        neck='neck.projector',
        predictor='head.predictor',
        local_neck='neck.local_projector',
        local_predictor='local_head.predictor',
    )
    vectors = {'0': 'fc0', '1': 'bn0', '3': 'fc1'}
    layer = f'mlp.{layer}' if part.startswith('local') else vectors[layer]
    return f'{paths[part]}.{layer}.{kind}'


def test_golden_total(golden, boxed):
    """Losses and all gradients, through loss() itself."""
    g = golden('lcloss_total_ours')
    leaves = [g[f'maps_{i}'].requires_grad_() for i in (1, 2)]
    target_maps = [g[f'twin_maps_{i}'] for i in (1, 2)]
    hidden, in_channels = g['param_neck.0.weight'].shape
    model = golden_model(g, leaves, target_maps, hidden, len(g['param_neck.3.weight']), in_channels)
    names = [k[len('param_') :] for k in g if k.startswith('param_')]
    for name in names:
        model.get_parameter(our_name(name)).data.copy_(g[f'param_{name}'])
    for name in (k[len('twin_') :] for k in g if k.startswith('twin_') and '.' in k):
        ours = our_name(name).replace('neck.', 'encoder_k.module.1.', 1)
        model.get_parameter(ours).data.copy_(g[f'twin_{name}'])
    losses = model.loss(views(leaves[0]), boxed(g['boxes_1'], g['boxes_2']))
    close(losses['loss_global'] - 4, g['loss_global'])
    close(losses['loss_local'], g['local_weight'] * g['loss_local'])
    total = sum(losses.values())
    close(total - 4, g['total'])
    total.backward()
    for i, leaf in enumerate(leaves, 1):
        close(leaf.grad, g[f'grad_maps_{i}'], f'maps_{i}')
    for name in names:
        close(model.get_parameter(our_name(name)).grad, g[f'grad_{name}'], name)


def test_the_local_loss_is_added_to_that_of_byol(two_views):
    """The global loss and its gradients are BYOL's of the same weights."""
    batch = two_views(n=3)
    model, samples = MODELS.build(config()), batch[1]
    projector = parts(dict(type='BN'))['neck']['projector']
    cfg = config(type='BYOL', neck=dict(projector, in_channels=64))
    del cfg['local_head']
    byol = MODELS.build(cfg)
    state = {k.replace('projector.', ''): v for k, v in model.state_dict().items()}
    left = byol.load_state_dict(state, strict=False)
    assert not left.missing_keys and all('local_' in name for name in left.unexpected_keys)
    ours, theirs = model.loss(batch[0], samples)['loss_global'], byol.loss(batch[0])['loss']
    close(ours, theirs)
    weights = model.backbone.conv1.weight, byol.backbone.conv1.weight
    close(*(torch.autograd.grad(*pair)[0] for pair in zip((ours, theirs), weights)))


def test_the_momentum_encoder_averages_the_local_projector(two_views):
    model = MODELS.build(config(base_momentum=0.5, total_steps=10**6))
    model.init_weights()
    online, average = model.neck.local_projector, model.encoder_k.module[1].local_projector
    batch = two_views(n=2)
    model.loss(*batch)  # the first update copies
    before = average.mlp[0].weight.clone()
    with torch.no_grad():
        online.mlp[0].weight.add_(1)
    model.loss(*batch)
    close(average.mlp[0].weight, before + 0.5)
    assert all(p.grad is None for p in model.encoder_k.parameters())
    # statistics of its own
    assert not torch.equal(average.mlp[1].running_mean, online.mlp[1].running_mean)


def test_every_parameter_has_a_gradient(two_views):
    """Or DistributedDataParallel would wait for it."""
    model = MODELS.build(config())
    model.init_weights()
    sum(model(*two_views(n=2), mode='loss').values()).backward()
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_learns(two_views):
    """Some steps on one batch bring both losses down."""
    torch.manual_seed(0)
    model = MODELS.build(config(base_momentum=0.1))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    images, samples = two_views(n=8, size=96, seed=0)
    history = []
    for _ in range(15):
        losses = model.loss([x + 0.1 * torch.randn_like(x) for x in images], samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[-1]['loss_global'] < history[0]['loss_global'] - 1, history
    assert history[-1]['loss_local'] < 0.9 * history[0]['loss_local'], history


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(neck=parts(dict(type='BN'))['neck']['projector'] | dict(in_channels=64)),
         'LCLoss needs neck=dict.type="GlobalLocalNeck".*got NonLinearNeck'),
        (dict(local_weight=0), 'local_weight must be a number above 0'),
        (dict(local_head=dict(type='LocalContrastHead', temperature=0)), 'temperature must be a'),
    ],
)  # fmt: skip
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_views_without_boxes_say_so(two_views):
    with pytest.raises(InputError, match='carry no boxes of the views'):
        MODELS.build(config()).loss(two_views(n=2)[0])


@pytest.mark.parametrize(
    'path, epochs, images',
    [
        ('configs/lcloss_r50_in1k.py', 100, ('data/imagenet', 'train')),
        ('configs/lcloss/lc-loss_resnet50_8xb128-coslr-400e_in1k.py', 400, None),
        ('configs/lcloss_r50_coco.py', 800, ('data/coco', 'train2017')),
    ],
)
def test_recipe(path, epochs, images):
    """PixPro's views, schedule and momentum."""
    recipe = load_recipe(path)
    assert recipe.train_cfg.max_epochs == epochs
    dataset = recipe.train_dataloader.dataset
    assert images in (None, (dataset.data_root, dataset.data_prefix))
    for base in ('schedules/lars_coslr_100e', 'views/byol'):
        for key, value in load_recipe(f'configs/_base_/{base}.py').items():
            assert recipe[key] == value or key in ('train_cfg', 'view_pipelines'), key
    assert recipe.train_dataloader.batch_size * 8 == recipe.auto_scale_lr.base_batch_size
    assert recipe.model.base_momentum == 0.01 and 'init_cfg' not in recipe.model.backbone
    assert recipe.model.local_weight == recipe.model.local_head.temperature == 0.1
    assert recipe.model.backbone.norm_cfg.type == 'SyncBN'
    assert str(recipe.model).count("'SyncBN'") == 5


def test_networks_of_the_recipe():
    """BYOL's projector and predictor, of vectors and of locations."""
    model = MODELS.build(load_recipe('configs/lcloss_r50_coco.py').model)
    assert model.encoder_k.end_momentum == 0
    widths = {2048: [(4096, 2048), (256, 4096)], 256: [(4096, 256), (256, 4096)]}
    branches = [(2048, model.neck.projector), (256, model.head.predictor)]
    branches += [(2048, model.neck.local_projector), (256, model.local_head.predictor)]
    for channels, part in branches:
        assert [tuple(p.shape[:2]) for p in part.parameters() if p.dim() > 1] == widths[channels]
        layers = [m for m in part.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert all(layer.bias is not None for layer in layers)
