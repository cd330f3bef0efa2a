# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""RegionCL-M, and the swapped regions that all three variants share."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import load_recipe
from regioncl_draws import InOrder, draw_by_process, use_region
from tiny_algorithms import PAIRS, Tiny, health_names
from torch.nn.functional import cross_entropy, normalize

from mmdense.apis.report.show import show
from mmdense.checkpoints import describe_product
from mmdense.models import (
    MomentumEncoder,
    RegionSwap,
    SwappedRegion,
    info_nce,
    mask_region,
    place_region,
)
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError
from mmdense.visualization import mix_views

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    dim = 8
    neck = dict(type='mmpretrain.MoCoV2Neck', in_channels=64, hid_channels=16, out_channels=dim)

    def calls(image, patches, seen):
        # images to be encoded elsewhere, and their keys back; the queue's keys
        return [
            ('all_to_all_single', 3 * image * 4),
            ('all_to_all_single', 3 * dim * 4),
            ('all_gather', 3 * dim * 4),
        ]

    return Tiny(
        algorithm='RegionCL',
        family='queue',
        parts=lambda norm: dict(
            neck=neck, head=dict(type='InfoNCEHead'), queue_len=13, feat_dim=dim
        ),
        recipe='regioncl_r50_coco',
        options=['model.neck.in_channels=512', 'model.neck.hid_channels=64', 'model.queue_len=64'],
        health=health_names(global_=PAIRS, region=PAIRS),
        losses=['loss_instance', 'loss_region'],
        fix=draw_by_process,
        own=['region'],
        calls=calls,
    )


def config(channels=64, hidden=32, dim=16, temperature=0.2, **changes):
    cfg = dict(
        type='RegionCL',
        backbone=dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(
            type='mmpretrain.MoCoV2Neck',
            in_channels=channels,
            hid_channels=hidden,
            out_channels=dim,
        ),
        head=dict(type='InfoNCEHead', temperature=temperature),
        queue_len=64,
        feat_dim=dim,
    )
    return dict(cfg, **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


# ---------------------------------------------------------------- goldens


def cells_of(g):
    return tuple(g['region_cells'].tolist())


def region_of(g, maps, side=None):
    """Return a golden's region, for images of a side in pixels."""
    grid, cells = tuple(maps.shape[2:]), cells_of(g)
    cell = (side or grid[1]) // grid[1]
    partner = torch.arange(len(maps)).flip(0)
    return SwappedRegion(tuple(cell * c for c in cells), mask_region(cells, grid, 'cpu'), partner)


@pytest.mark.parametrize('rule', ['aligned', 'published'])
def test_golden_regions(golden, rule, monkeypatch):
    """Draws become the rectangles of the authors' code, and ours: through draw() itself."""
    g = golden('regioncl_regions')
    side, cell = int(g['image_side']), 32
    images, grid = torch.zeros(2, 3, side, side), (side // cell,) * 2
    draws = torch.cat([g['draw_size_cells'], g['draw_start_px']], dim=1).flatten().tolist()
    monkeypatch.setattr(np.random, 'randint', lambda *limits: draws.pop(0))
    swap = RegionSwap(aligned=rule == 'aligned')
    pixels = g['published_region_px'] if rule == 'published' else 32 * g['aligned_region_cells']
    for px, cells in zip(pixels.tolist(), g[f'{rule}_region_cells'].tolist()):
        region = swap.draw(images, grid)
        assert list(region.pixels) == px
        assert torch.equal(region.mask, mask_region(cells, grid, 'cpu'))
    assert not draws


def test_golden_swap(golden):
    g = golden('regioncl_swap')
    cells, cell = cells_of(g), int(g['cells_side_px'])
    region = SwappedRegion(tuple(cell * c for c in cells), None, g['partner'])
    assert torch.equal(region.mix(g['images']), g['mixed'])
    grid = tuple(side // cell for side in g['images'].shape[2:])
    assert torch.equal(RegionSwap().draw(g['images'], grid).partner, g['partner'])


def load_neck(model, g, start='weight_', neck=None):
    neck = neck or model.neck
    names = {k[len(start) :].replace('_', '.'): v for k, v in g.items() if k.startswith(start)}
    neck.load_state_dict(names, strict=True)


def golden_model(g, **changes):
    """Build the networks whose tensors a golden has."""
    hidden, channels = g['weight_mlp_0_weight'].shape
    model = MODELS.build(config(channels, hidden, len(g['weight_mlp_2_bias']), **changes))
    load_neck(model, g)
    return model


def test_golden_neck(golden):
    """Regions of maps, projected; and the gradients of the maps."""
    g = golden('regioncl_neck')
    model, maps = golden_model(g), g['maps'].requires_grad_()
    region = region_of(g, maps)

    def project(vectors):
        return model.neck((vectors[:, :, None, None],))[0]

    canvas, paste = (project(x) for x in region.pool(maps))
    back = region.partner.argsort()
    outputs = [canvas, canvas[region.partner], paste[back], paste]
    for output, name in zip(outputs, ('canvas', 'canvas_of_partner', 'paste', 'paste_in_place')):
        close(output, g[name], name)
    close(model.neck((maps,))[0], g['whole'])
    (grad,) = torch.autograd.grad(outputs, maps, list(g['cotangents']))
    close(grad, g['grad_maps'])


def test_golden_losses(golden):
    """Losses, gradients, momentum encoder and queue, through loss() itself."""
    g = golden('regioncl_losses')
    dim, length = g['queue'].shape
    model = golden_model(g, temperature=float(g['temperature']), queue_len=length)
    maps, swapped = g['maps'].requires_grad_(), g['maps_swapped'].requires_grad_()
    model.backbone = InOrder(maps, swapped)
    model.encoder_k = MomentumEncoder(model.neck, 1 - float(g['twin_momentum']))
    load_neck(model, g, 'twin_before_', model.encoder_k.module)
    model.encoder_k.steps.fill_(1)  # the first update would copy
    model.encoder_k.module = torch.nn.Sequential(InOrder(g['maps_key']), model.encoder_k.module)
    model.queue.keys.copy_(g['queue'])
    use_region(model, cells_of(g))

    n, side = len(maps), 4 * maps.size(3)
    views = list(torch.randn(2, n, 3, side, side))
    losses = model.loss(views)
    for name in ('loss_instance', 'loss_region'):
        close(losses[name], g[name], name)
    total = sum(losses.values())
    close(total, g['total'])
    total.backward()
    close(maps.grad, g['grad_maps'])
    close(swapped.grad, g['grad_maps_swapped'])
    for name, p in model.neck.named_parameters():
        close(p.grad, g[f'grad_{name.replace(".", "_")}'], name)
    after = model.encoder_k.module[1].state_dict()
    for name, value in after.items():
        close(value, g[f'twin_after_{name.replace(".", "_")}'], name)
    close(model.queue.keys, g['queue_after'])
    # the second pass sees the mixed query view, the momentum encoder the other view as it is
    region = region_of(g, maps, side)
    assert torch.equal(model.backbone.seen[0], views[0])
    assert torch.equal(model.backbone.seen[1], region.mix(views[0]))
    assert torch.equal(model.encoder_k.module[0].seen[0], views[1])


# ---------------------------------------------------------------- the swap


def test_mixed_images():
    """Each shows its partner inside of the rectangle, itself outside; the middle one of an odd
    batch is as it was."""
    images = torch.randn(5, 3, 56, 42).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    region = SwappedRegion((7, 14, 21, 28), None, torch.arange(5).flip(0))
    mixed = region.mix(images)
    assert torch.equal(images, before)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    inside = torch.zeros(56, 42, dtype=torch.bool)
    inside[14:42, 7:28] = True
    for b, image in enumerate(mixed):
        assert torch.equal(image[:, inside], images[4 - b][:, inside])
        assert torch.equal(image[:, ~inside], images[b][:, ~inside])
    assert torch.equal(mixed[2], images[2])


@pytest.mark.parametrize('grid', [(7, 7), (2, 2), (3, 5), (14, 7)])
def test_the_aligned_rectangle_is_what_is_pooled(grid):
    """A map of the pixels' means: the pasted region has the pixels of the partner alone, the
    canvas those of the image."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8 * grid[0], 8 * grid[1])
    sizes, swap = set(), RegionSwap()
    for _ in range(30):
        region = swap.draw(images, grid)
        maps = torch.nn.functional.adaptive_avg_pool2d(region.mix(images), grid)
        canvas, paste = region.pool(maps)
        torch.testing.assert_close(canvas, images[:, :, 0, 0])
        torch.testing.assert_close(paste, images[:, :, 0, 0].flip(0))
        sizes.add((int(region.mask.any(2).sum()), int(region.mask.any(3).sum())))
    for axis, cells in ((0, grid[1]), (1, grid[0])):
        low, high = max(round(cells * 3 / 7), 1), min(round(cells * 5 / 7), cells - 1)
        found = {size[axis] for size in sizes}
        assert found <= set(range(low, high + 1)) and {low, high} <= found


def test_the_released_rule_pools_other_places():
    """At 224 px, as the page says: beside the rectangle in 87 % of the steps."""
    wrong = 0
    starts = range(224)
    for size in (3, 4, 5):
        for start in starts:
            first, cell = place_region(start, size, 224, 7, aligned=False)
            wrong += first != 32 * cell
            assert first - 32 * cell in (0, 31)
            assert first + 32 * size < 224
    share = wrong / (3 * len(starts))
    assert 1 - (1 - share) ** 2 == pytest.approx(0.87, abs=0.01)


def test_each_draw_is_another():
    images = torch.zeros(2, 3, 224, 224)
    np.random.seed(0)
    first = [RegionSwap().draw(images, (7, 7)).pixels for _ in range(20)]
    np.random.seed(0)
    assert [RegionSwap().draw(images, (7, 7)).pixels for _ in range(20)] == first
    assert len(set(first)) > 10


@pytest.mark.parametrize(
    'shape, grid, words',
    [
        ((1, 3, 64, 64), (2, 2), 'needs at least 2, got 1'),
        ((4, 3, 32, 32), (1, 1), 'a map of at least 2×2 .* got 1×1 of views of 32×32 px'),
        ((4, 3, 100, 100), (7, 7), 'whose sides divide those of the views, got 7×7'),
    ],
)
def test_batches_without_a_swap_say_so(shape, grid, words):
    with pytest.raises(InputError, match=words):
        RegionSwap().draw(torch.zeros(shape), grid)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(min_share=2), r'min_share must be .*in \[0, 1\]'),
        (dict(min_share=0.6, max_share=0.5), 'min_share=0.6 must be at most max_share=0.5'),
    ],
)
def test_wrong_shares_say_so(changes, words):
    with pytest.raises(InputError, match=words):
        RegionSwap(**changes)


# ---------------------------------------------------------------- the extra negative


@pytest.mark.parametrize('length', [30, 5000])
def test_extra_negative(length):
    """Equals one more column of logits, at once and streamed; gradients too, none to it."""
    rows, temperature = 64, 0.2
    query, key, extra = normalize(torch.randn(3, rows, 16), dim=2)
    queue = normalize(torch.randn(16, length), dim=0)
    query, key = query.requires_grad_(), key.requires_grad_()
    extra.requires_grad_()
    logits = [(query * key).sum(1, True), query @ queue, (query * extra.detach()).sum(1, True)]
    target = torch.zeros(rows, dtype=torch.long)
    expected = cross_entropy(torch.cat(logits, dim=1) / temperature, target)
    ours = info_nce(query, key, queue, temperature, extra)
    close(ours, expected)
    ours, expected = (torch.autograd.grad(x, [query, key]) for x in (ours, expected))
    for a, b in zip(ours, expected):
        close(a / b.abs().max(), b / b.abs().max())
    assert extra.grad is None
    with pytest.raises(InputError, match='extra must be'):
        info_nce(query, key, queue, temperature, extra[:2])


def test_region_loss_by_its_definition():
    """Row by row, from the features: positives are keys of what a region shows."""
    torch.manual_seed(0)
    model = MODELS.build(config(temperature=0.3))
    seen = []
    loss = model.head.loss

    def watch(*args):
        seen.append([x.clone() for x in args])
        return loss(*args)

    model.head.loss = watch
    losses = model.loss(list(torch.randn(2, 4, 3, 64, 64)))
    (_, k, _), (rows, keys, queue, extra) = seen
    expected = []
    for b in range(4):
        canvas, paste = rows[b], rows[4 + b]
        for query, positive, other in ((canvas, k[b], paste), (paste, k[3 - b], canvas)):
            logits = torch.cat([(query @ positive)[None], query @ queue, (query @ other)[None]])
            expected.append(-(logits / 0.3).log_softmax(0)[0])
    close(losses['loss_region'], sum(expected) / 8)
    assert torch.equal(keys, torch.cat([k, k.flip(0)]))
    assert torch.equal(extra, torch.cat([rows[4:], rows[:4]]))


# ---------------------------------------------------------------- the algorithm


def test_gradients_reach_backbone_and_neck_alone():
    model = MODELS.build(config())
    losses = model.loss(list(torch.randn(2, 4, 3, 64, 64)))
    losses['loss_region'].backward()
    assert all(p.grad is not None for p in [*model.backbone.parameters(), *model.neck.parameters()])
    assert all(p.grad is None for p in model.encoder_k.parameters())


def test_another_backbone_builds_and_steps():
    backbone = dict(type='mmpretrain.ConvNeXt', arch='atto', gap_before_final_norm=False)
    model = MODELS.build(config(channels=320, backbone=backbone))
    model.init_weights()
    losses = model([torch.randn(2, 3, 64, 64) for _ in range(2)], mode='loss')
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_learns():
    """Some steps on two batches, whose keys are each other's negatives, bring both losses down."""
    torch.manual_seed(0)
    model = MODELS.build(config(queue_len=8))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = torch.randn(2, 8, 3, 64, 64)
    history = []
    for step in range(24):
        batch = batches[step % 2]
        losses = model.loss([batch + 0.1 * torch.randn_like(batch) for _ in range(2)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([loss.item() for loss in losses.values()])
    for losses in zip(*history):
        assert sum(losses[-4:]) / 4 < max(losses) * 0.75, history


def test_wrong_batches_say_so():
    model = MODELS.build(config())
    image = torch.randn(4, 3, 64, 64)
    with pytest.raises(InputError, match='RegionCL needs 2 views of every image, got'):
        model.loss([image])
    with pytest.raises(InputError, match='needs at least 2, got 1'):
        model.loss([image[:1]] * 2)
    with pytest.raises(TypeError, match='RegionCL got an unexpected argument: foo'):
        MODELS.build(config(foo=1))


@pytest.mark.parametrize(
    'path, batch, lr, epochs',
    [
        ('configs/regioncl_r50_in1k.py', 1024, 0.15, 200),
        ('configs/regioncl_r50_coco.py', 256, 0.3, 800),
    ],
)
def test_recipe(path, batch, lr, epochs):
    """As published on ImageNet; decay on every parameter, a cosine by epoch."""
    recipe = load_recipe(path)
    assert recipe.optim_wrapper == dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    )
    assert recipe.auto_scale_lr.base_batch_size == batch and recipe.train_cfg.max_epochs == epochs
    assert recipe.param_scheduler == [dict(type='CosineAnnealingLR', by_epoch=True)]
    model = recipe.model
    assert (model.queue_len, model.feat_dim, model.momentum) == (65536, 128, 0.001)
    assert model.head.temperature == 0.2 and model.backbone.norm_cfg.type == 'BN'


def test_init_follows_the_published_code():
    cfg = load_recipe('configs/regioncl_r50_in1k.py').model
    cfg.queue_len = 8
    model = MODELS.build(cfg)
    model.init_weights()
    conv = model.backbone.layer3[0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.02)
    assert (model.backbone.layer3[0].bn3.weight == 1).all()
    fc, bias = model.neck.mlp[0].weight, model.neck.mlp[0].bias
    assert fc.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02) and (bias == 0).all()


# ---------------------------------------------------------------- mmdense show


@pytest.fixture
def checkpoint(tmp_path):
    """As tools/train.py writes one."""
    cfg = load_recipe('configs/regioncl_r50_coco.py')
    cfg.merge_from_dict(
        {
            'model.backbone': dict(depth=18, stem_channels=8, base_channels=8),
            'model.neck.in_channels': 64,
            'model.neck.hid_channels': 16,
            'model.queue_len': 8,
        }
    )
    model = MODELS.build(cfg.model)
    meta = dict(cfg=cfg.pretty_text, mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'epoch_1.pth')
    return str(tmp_path / 'epoch_1.pth')


def test_show_draws_the_mixed_images(checkpoint, images, tmp_path):
    files = show(checkpoint, [images], str(tmp_path / 'out'), number=3, size=128)
    (picture,) = [path for path in files if path.endswith('regions.png')]
    assert min(Image.open(picture).size) > 300
    html = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    # of three images the first and the last swap
    names = re.findall(r'<figcaption>(\S+), with a region of (\S+)</figcaption>', html)
    assert names == [('00.jpg', '15.jpg'), ('08.jpg', '08.jpg'), ('15.jpg', '00.jpg')]
    files = show(checkpoint, [f'{images}/00.jpg'], str(tmp_path / 'one'), size=128)
    assert not any('regions' in path for path in files)
    html = (tmp_path / 'one' / 'index.html').read_text(encoding='utf-8')
    assert 'Swapped regions: two images or more are needed' in html


def test_pictures_of_mixed_views():
    """The rectangle has the other view's pixels; lines are around it, and around grid cells."""
    views = [np.full((66, 64, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40)]
    for aligned in (True, False):
        mixed = mix_views(views, (4, 4), RegionSwap(aligned=aligned), seed=1)
        assert [one.partner for one in mixed] == [3, 2, 1, 0]
        for one, view, partner in zip(mixed, views, (40, 30, 20, 10)):
            assert one.picture.shape == (64, 64, 3)
            colours = {tuple(c) for c in one.picture.reshape(-1, 3).tolist()}
            greys = {c[0] for c in colours if len(set(c)) == 1}
            assert greys == {view[0, 0, 0], partner} and len(colours) == 4
