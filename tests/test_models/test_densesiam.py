# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math
import re

import pytest
import torch
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn
from torch.nn.functional import cosine_similarity, grid_sample, interpolate

from mmdense.checkpoints import describe_product
from mmdense.cli import main
from mmdense.models import (
    DenseSiam,
    DenseSiamDecoder,
    align_maps,
    group_distillation,
    region_contrast,
    region_embeddings,
    self_labelling,
    views_overlap,
)
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        # wide: rounding to bfloat16 averages out
        neck, predictor, image_predictor = pretraining(64, 256, 256, 128, norm)
        return dict(neck=neck, predictor=predictor, image_predictor=image_predictor)

    def segmenter(norm):
        return segmentation([8, 16, 32, 64], channels=32, classes=16, auxiliary=32, norm=norm)

    def with_regions(norm):
        # with 16 regions an activation is so near to 0 that rounding decides on its gradient
        return dict(parts(norm), **regions(64, 8, norm))

    return Tiny(
        algorithm='DenseSiam',
        family='siamese',
        parts=parts,
        variants=dict(DenseSiamSegmenter=segmenter, DenseSiamRegions=with_regions),
        backbone=dict(out_indices=(0, 1, 2, 3)),
        recipe='densesiam_r50_coco',
        options=[
            'model.neck.in_channels=512',
            *(f'model.neck.{name}=64' for name in ('hid_channels', 'out_channels')),
            *(
                f'model.{name}predictor.{key}'
                for name in ('', 'image_')
                for key in ('in_channels=64', 'hid_channels=16', 'out_channels=64')
            ),
        ],
        health=health_names(global_=PAIRS, dense=PAIRS),
        losses=['loss_pixel', 'loss_image'],
        collapses=False,  # the last norm of its projectors has no scale and no shift
        calls=lambda image, patches, seen: [('all_reduce', 4)],  # the images with overlap
    )


def mlp(in_channels, hidden, out, layers, norm=None, **changes):
    """Return the config of a projector or predictor, without biases in front of norms."""
    return dict(
        type='ProjectionMLP',
        in_channels=in_channels,
        hid_channels=hidden,
        out_channels=out,
        num_layers=layers,
        with_bias=False,
        norm_cfg=norm or dict(type='BN'),
        **changes,
    )


def pretraining(in_channels, hidden, channels, predictor_hidden, norm=None):
    """Return the configs of the neck and of both predictors."""
    neck = dict(
        type='DenseSiamNeck',
        in_channels=in_channels,
        hid_channels=hidden,
        out_channels=channels,
        norm_cfg=norm,
    )
    widths = channels, predictor_hidden, channels, 2, norm
    return neck, mlp(*widths), mlp(*widths, dense=False)


def region_head(channels, norm=None, **changes):
    last = dict(dense=False, with_last_bias=False, with_last_bn=True)
    return dict(
        type='RegionContrastHead',
        projector=mlp(channels, channels, channels, 3, norm, **last),
        predictor=mlp(channels, channels, channels, 2, norm, dense=False),
        **changes,
    )


def regions(channels, classes, norm=None):
    neck = mlp(channels, channels, classes, 3, norm, with_last_bias=False, with_last_bn=True)
    return dict(region_neck=neck, region_head=region_head(channels, norm))


def segmentation(in_channels, channels, classes, auxiliary, norm=None):
    """Return the parts of the segmentation variant, as the released code has them."""

    def pair(number):
        neck = mlp(channels, channels, number, 3, norm, with_last_bn=True)
        return neck, mlp(number, channels, number, 2, norm)

    neck, predictor = pair(classes)
    auxiliary_neck, auxiliary_predictor = pair(auxiliary)
    return dict(
        decoder=dict(type='DenseSiamDecoder', in_channels=in_channels, out_channels=channels),
        neck=neck,
        predictor=predictor,
        auxiliary_neck=auxiliary_neck,
        auxiliary_predictor=auxiliary_predictor,
        region_head=region_head(channels, norm),
    )


def config(**changes):
    neck, predictor, image_predictor = pretraining(512, 32, 32, 8)
    backbone = dict(type='mmpretrain.ResNet', depth=18)
    parts = dict(neck=neck, predictor=predictor, image_predictor=image_predictor)
    return dict(dict(type='DenseSiam', backbone=backbone, **parts), **changes)


def without_image_branch():
    neck = dict(pretraining(512, 32, 32, 8)[0], image_branch=False)
    return config(neck=neck, image_predictor=None)


def segmenter_config(classes=8, channels=16, auxiliary=16, **changes):
    backbone = dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3))
    parts = segmentation([64, 128, 256, 512], channels, classes, auxiliary)
    return dict(dict(type='DenseSiam', backbone=backbone, **parts), **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


class Given(nn.Module):
    """A backbone that returns the maps of a view, which is its number."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return (self.maps[int(x.flatten()[0])],)


def numbers(count):
    """Views of so many images that tell :class:`Given` which one they are."""
    return [torch.full((count, 3, 1, 1), float(i)) for i in range(2)]


WHOLE = [0.0, 0.0, 1.0, 1.0]


# The published code's segmentation variant, and golden vectors


def test_golden_decoder(golden):
    g = golden('densesiam_decoder')
    maps = [g[name] for name in ('res2', 'res3', 'res4', 'res5')]
    decoder = DenseSiamDecoder([m.size(1) for m in maps], g['layer1.weight'].size(0))
    for i, conv in enumerate(decoder.lateral_convs):  # layer1 takes res5
        conv.load_state_dict({k: g[f'layer{4 - i}.{k}'] for k in ('weight', 'bias')})
    close(decoder(maps), g['out'])


def test_golden_pixel_loss(golden):
    g = golden('densesiam_pixel_losses')
    p, z = g['p'].requires_grad_(), g['z'].requires_grad_()
    plain = dict(student_temperature=1.0, teacher_temperature=1.0)
    loss = group_distillation(p, z, **plain)
    close(loss, g['loss'])
    grad_p, grad_z = torch.autograd.grad(loss, (p, z), allow_unused=True)
    close(grad_p, g['grad_p'])
    assert grad_z is None
    for place, expected in zip(_places(g['loss_map'].shape), g['loss_map'].flatten()):
        n, y, x = place
        close(group_distillation(p[n, :, y, x][None], z[n, :, y, x][None], **plain), expected)


def _places(shape):
    return [tuple(place) for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist()]


@pytest.mark.parametrize('kind', ['plain', 'rebalanced'])
def test_golden_segmentation_loss(golden, kind):
    """One view, by the model's own class weights."""
    g = golden('densesiam_pixel_losses')
    z = g[f'seg_{kind}_z'].requires_grad_()
    weight = None if kind == 'plain' else DenseSiam._class_shares([z])[0]
    loss = self_labelling(z, weight)
    close(loss, g[f'seg_{kind}_loss'])
    close(torch.autograd.grad(loss, z)[0], g[f'seg_{kind}_grad_z'])


def load_published(model, g, start='param_', parts=None):
    """Fill a model from a golden, through the names that AUTHORS declares; return our names."""
    names = model.AUTHORS[0].names
    ours = {}
    for key in (key[len(start) :] for key in g if key.startswith(start)):
        prefix = next(name for name in names if key.startswith(name))
        ours[key] = names[prefix] + key[len(prefix) :]
    state = {ours[key]: g[start + key] for key in ours}
    missing = set(dict(model.named_parameters())) - set(state)
    assert not {name for name in missing if not name.startswith(('backbone', 'decoder'))}
    model.load_state_dict(state, strict=False)
    return ours


def test_golden_region_loss(golden):
    g = golden('densesiam_region_loss')
    maps, scores = ([g[f'{k}_{i}'].requires_grad_() for i in (1, 2)] for k in ('feats', 'z'))
    head = MODELS.build(region_head(maps[0].size(1), temperature=float(g['temperature'])))
    names = {
        f'kernel_{part}.{rest}': f'{part}.mlp.{rest}'
        for part in ('projector', 'predictor')
        for rest in (n[4:] for n, _ in getattr(head, part).named_parameters())
    }
    assert {f'param_{name}' for name in names} == {k for k in g if k.startswith('param_')}
    head.load_state_dict({o: g[f'param_{n}'] for n, o in names.items()}, strict=False)
    loss = float(g['weight']) * head.loss(*zip(maps, scores))
    close(loss, g['loss'])
    loss.backward()
    for i in (0, 1):
        close(maps[i].grad, g[f'grad_feats_{i + 1}'])
        close(scores[i].grad, g[f'grad_z_{i + 1}'])
    for theirs, ours in names.items():
        close(head.get_parameter(ours).grad, g[f'grad_{theirs}'], theirs)


def golden_segmenter(g):
    """Build the segmentation variant at the size of a golden, which gives the decoder's maps."""
    classes, channels = g['param_projector.6.weight'].shape[:2]
    auxiliary = g['param_aux_projector.6.weight'].size(0)
    model = MODELS.build(segmenter_config(classes, channels, auxiliary))
    names = load_published(model, g)
    feats = [g[f'feats_{i}'].requires_grad_() for i in (1, 2)]
    model.backbone, model.decoder = Given(*feats), Last()
    return model, feats, names


class Last(nn.Module):
    def forward(self, maps):
        return maps[-1]


def test_golden_total(golden, boxed):
    """Losses, gradients and running statistics of a step through loss() itself."""
    g = golden('densesiam_total')
    model, feats, names = golden_segmenter(g)
    whole = torch.tensor([WHOLE] * len(feats[0]))
    losses = model.loss(numbers(len(whole)), boxed(whole, whole))
    for ours, theirs in (
        ('pixel', 'simsiam'),
        ('segmentation', 'seg'),
        ('region', 'kernel_cross'),
        ('auxiliary', 'aux'),
    ):
        close(losses[f'loss_{ours}'], g[f'loss_{theirs}'], theirs)
    assert len(losses) == 4
    total = sum(losses.values())
    close(total, g['total'])
    total.backward()
    for i in (0, 1):
        close(feats[i].grad, g[f'grad_feats_{i + 1}'])
    for theirs, ours in names.items():
        close(model.get_parameter(ours).grad, g[f'grad_{theirs}'], theirs)
    state, prefixes = model.state_dict(), model.AUTHORS[0].names
    statistics = [key[len('after_') :] for key in g if key.startswith('after_')]
    assert len(statistics) == 2 * sum(isinstance(m, nn.modules.batchnorm._BatchNorm)
                                      for m in model.modules())  # fmt: skip
    for theirs in statistics:
        prefix = next(name for name in prefixes if theirs.startswith(name))
        close(state[prefixes[prefix] + theirs[len(prefix) :]], g[f'after_{theirs}'], theirs)
    model.eval()
    close(model.group_scores(numbers(len(whole))[0]), g['test_scores_1'])


def test_golden_views(golden, boxed):
    """View 1 is a crop of the image, view 2's crop follows the network; the golden rounds sides
    and starts to pixels and grid cells, which the helper here does with our box."""
    from mmdense.datasets import RandomFlip, RandomSquareCrop

    g = golden('densesiam_views')
    res, cells = int(g['res']), g['feats'].size(3)
    for i, image in enumerate(g['image']):
        scale, place, flipped = (
            float(g['scale'][i]),
            g['place'][i].tolist(),
            g['flip_draw'][i] < 0.5,
        )
        crop = RandomSquareCrop(scale=res, side_range=(scale, scale))
        crop.draw_place = lambda place=place: place
        results = crop.transform(dict(img=image.permute(1, 2, 0).contiguous().numpy()))
        results = RandomFlip(prob=float(flipped)).transform(results)
        view = torch.from_numpy(results['img']).permute(2, 0, 1)
        close(view, g['image_view'][i])

        # the published rounding on the map's grid, as a box
        length = math.floor(scale * cells)
        top, left = (round((cells - length) * p) for p in place)
        box = torch.tensor([[left, top, left + length, top + length]]) / cells
        cut = align_maps(g['feats'][i : i + 1], torch.tensor([WHOLE]), box)
        # inside: at the border the published crop repeats cells, ours reads those outside
        theirs = g['feats_view'][i].flip(2) if flipped else g['feats_view'][i]
        part = g['feats'][i : i + 1, :, top : top + length, left : left + length]
        close(interpolate(part, (cells, cells), mode='bilinear')[0], theirs)
        margin = math.ceil(0.5 * cells / length)
        inner = slice(margin, cells - margin)
        close(cut[0, :, inner, inner], theirs[:, inner, inner])
        # our box is that of the pixels, at most a cell from the published crop of the map
        pixels = torch.tensor(results['view_box'])
        start, end = torch.minimum(pixels[:2], pixels[2:]), torch.maximum(pixels[:2], pixels[2:])
        assert (torch.cat([start, end]) - box[0]).abs().max() <= 1 / cells


# The pretraining variant


def test_golden_pretraining_pixel_loss(golden, boxed):
    """Loss and gradients through loss() itself, and the aligned projections."""
    g = golden('densesiam_pretrain_pixel_ours')
    widths = g['param_proj_0.weight'], g['param_proj_6.weight'], g['param_pred_0.weight']
    (hidden, channels), (out, _), (predictor_hidden, _) = (w.shape[:2] for w in widths)
    neck, predictor, _ = pretraining(channels, hidden, out, predictor_hidden)
    model = MODELS.build(
        config(neck=dict(neck, image_branch=False), predictor=predictor, image_predictor=None)
    )
    feats = [g[f'feats_{i}'].requires_grad_() for i in (1, 2)]
    model.backbone = Given(*feats)
    names = {
        key: key.replace('proj_', 'neck.dense.mlp.').replace('pred_', 'predictor.mlp.')
        for key in (key[len('param_') :] for key in g if key.startswith('param_'))
    }
    assert set(names.values()) == {name for name, _ in model.named_parameters()}
    model.load_state_dict({o: g[f'param_{n}'] for n, o in names.items()}, strict=False)
    seen = {}
    model.health_monitor = seen.update
    (loss,) = model.loss(numbers(len(feats[0])), boxed(g['boxes_1'], g['boxes_2'])).values()
    close(loss, g['loss'])
    for i, z in enumerate(seen['dense'], 1):
        close(z, g[f'aligned_z_{i}'])
    loss.backward()
    for i in (0, 1):
        close(feats[i].grad, g[f'grad_feats_{i + 1}'])
    for theirs, ours in names.items():
        close(model.get_parameter(ours).grad, g[f'grad_{theirs}'], theirs)


def sampled(maps, box, other):
    """The overlap of a view's map, by grid_sample with border padding, image by image."""
    out = []
    for m, b, o in zip(maps, box, other):
        low = torch.maximum(torch.minimum(b[:2], b[2:]), torch.minimum(o[:2], o[2:]))
        high = torch.minimum(torch.maximum(b[:2], b[2:]), torch.maximum(o[:2], o[2:]))
        rows, columns = m.shape[1:]
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing='ij')
        place = torch.stack([x / columns, y / rows], dim=-1) * (high - low) + low
        grid = 2 * (place - b[:2]) / (b[2:] - b[:2]) - 1
        out.append(grid_sample(m[None], grid[None], padding_mode='border', align_corners=False))
    return torch.cat(out)


def test_pretraining_is_the_formula(two_views):
    """Equations of the docs, written out, of all three losses and their gradients."""
    torch.manual_seed(0)
    model = MODELS.build(config(**regions(512, 8)))
    views, samples = two_views(n=3)
    losses = model.loss(views, samples)
    box_1, box_2 = (torch.stack([s.view_boxes[i] for s in samples]).float() for i in (0, 1))
    assert views_overlap(box_1, box_2).any()
    maps = [model.backbone(view)[-1] for view in views]
    (z_1, v_1), (z_2, v_2) = (model.neck((m,)) for m in maps)

    def distance(p, z, *boxes):
        p, z = sampled(p, *boxes), sampled(z.detach(), *boxes[::-1])
        places = -cosine_similarity(p, z, dim=1).mean((1, 2))
        return places[views_overlap(*boxes)].mean()

    pixel = distance(model.predictor(z_1), z_2, box_1, box_2)
    pixel = (pixel + distance(model.predictor(z_2), z_1, box_2, box_1)) / 2
    image = [
        -cosine_similarity(model.image_predictor(v), w.detach()).mean()
        for v, w in ((v_1, v_2), (v_2, v_1))
    ]
    aligned = [align_maps(maps[0], box_1, box_2), align_maps(maps[1], box_2, box_1)]
    region = model.region_head.loss(*((m, model.region_neck(m)) for m in aligned))
    expected = dict(loss_pixel=pixel, loss_image=sum(image) / 2, loss_region=0.1 * region)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        close(loss, expected[name], name)
    ours, theirs = (
        torch.autograd.grad(sum(x.values()), [model.backbone.conv1.weight])[0]
        for x in (losses, expected)
    )
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_images_without_overlap_are_left_out(boxed, two_views):
    views, samples = two_views(n=3)
    model = MODELS.build(without_image_branch()).eval()
    boxes = [torch.stack([s.view_boxes[i] for s in samples]) for i in (0, 1)]
    apart = [torch.cat([box, torch.tensor([place]).to(box)]) for box, place in
             zip(boxes, ([0.0, 0.0, 0.3, 0.3], [0.6, 0.3, 0.3, 0.8]))]  # fmt: skip
    more = [torch.cat([view, torch.randn_like(view[:1])]) for view in views]
    close(model.loss(more, boxed(*apart))['loss_pixel'], model.loss(views, samples)['loss_pixel'])
    model.train()
    losses = model.loss([view[3:].repeat(2, 1, 1, 1) for view in more],
                        boxed(*(box[3:].repeat(2, 1) for box in apart)))  # fmt: skip
    assert losses['loss_pixel'] == 0
    losses['loss_pixel'].backward()
    assert all(
        torch.isfinite(p.grad).all() and not p.grad.any()
        for p in model.parameters()
        if p.grad is not None
    )


def test_no_gradient_reaches_the_target(two_views):
    """The projections of a view get no gradient from the other view's prediction."""
    model = MODELS.build(without_image_branch())
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.zero_()
    sum(model.loss(*two_views(n=2)).values()).backward()
    assert not any(p.grad.any() for p in model.neck.dense.parameters())


def test_learns(two_views):
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    views, samples = two_views(n=6)
    history = []
    for _ in range(20):  # views differ from run to run of the tests
        losses = model.loss([view + 0.1 * torch.randn_like(view) for view in views], samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([v.item() for v in losses.values()])
    assert all(last < first - 0.2 for first, last in zip(history[0], history[-1]))


@pytest.mark.parametrize('regions_too', [False, True])
def test_every_parameter_has_a_gradient(two_views, regions_too):
    """Or DistributedDataParallel would wait for it."""
    model = MODELS.build(config(**(regions(512, 8) if regions_too else {})))
    model.init_weights()
    sum(model(*two_views(n=2), mode='loss').values()).backward()
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]


# The segmentation variant


def test_region_loss_row_by_row():
    torch.manual_seed(0)
    f, z = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 3, 4)
    e = region_embeddings(f, z)
    mask = z.softmax(1)
    for b in range(2):
        for k in range(3):
            close(e[b, k], (mask[b, k] * f[b]).sum((1, 2)))
    h, g = torch.randn(2, 2, 3, 5)
    rows = []
    for b in range(2):
        for k in range(3):
            logits = cosine_similarity(h[b, k][None], g[b], dim=1) / 0.1
            rows.append(-logits.log_softmax(0)[k])
    close(region_contrast(h, g), sum(rows) / 6)


def test_frequent_classes_weigh_more():
    z = torch.zeros(1, 3, 2, 4)
    z[0, 0, :, :3] = 1
    z[0, 2, :, 3] = 1
    assert DenseSiam._class_shares([z]).tolist() == [[0.75, 0.0, 0.25]]
    one = -z[0, :, 0, 0].log_softmax(0)[0]
    close(self_labelling(z, torch.tensor([0.75, 0, 0.25])), (0.75 * 0.75 + 0.25 * 0.25) * one)
    close(self_labelling(z), one)
    # all locations in one class: weight 1, and the loss still pushes towards it
    z = torch.randn(1, 3, 2, 2)
    z[:, 1] = 5
    assert DenseSiam._class_shares([z]).tolist() == [[0, 1, 0]] and self_labelling(z) > 0


def test_weights_of_the_pairs(two_views):
    """Each pixel loss weighs as much as the other pair's largest entropy, ln of its channels."""
    batch = two_views(n=2)
    torch.manual_seed(0)
    model = MODELS.build(segmenter_config(classes=27, auxiliary=128, channels=16))
    both = model.loss(*batch)
    alone = MODELS.build(
        segmenter_config(
            classes=27, channels=16, auxiliary_neck=None, auxiliary_predictor=None, rebalance=False
        )
    )
    alone.load_state_dict(model.state_dict(), strict=False)
    one = alone.loss(*batch)
    assert one.keys() == {'loss_pixel', 'loss_segmentation', 'loss_region'}
    close(both['loss_pixel'], 0.59550 * one['loss_pixel'])
    assert both['loss_segmentation'] < one['loss_segmentation']
    assert both['loss_auxiliary'] > 0


def test_the_classes_in_use_are_probed(two_views):
    model, seen = MODELS.build(segmenter_config()), {}
    model.health_monitor = seen.update
    model.loss(*two_views(n=2))
    counts = seen['prototypes']()
    assert counts.shape == (8,) and counts.sum() == 2 * 2 * 16 * 16


@pytest.mark.parametrize('amp', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_segmenter_learns(two_views, amp):
    torch.manual_seed(0)
    model = MODELS.build(segmenter_config(channels=32))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch, history = two_views(n=2), []
    for _ in range(20):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            losses = model(*batch, mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [k for k, p in model.named_parameters() if p.grad is None]
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    for name in ('loss_pixel', 'loss_auxiliary'):
        assert history[-1][name] < 0.95 * history[0][name], name


@pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'), reason='this PyTorch has no float16 on a CPU'
)
def test_large_regions_in_half_precision():
    """An embedding is a sum over all locations, which float16 cannot hold."""
    head = MODELS.build(region_head(8))
    maps = (100 * torch.rand(2, 3, 8, 32, 32) + 400).half()
    scores = torch.zeros(2, 3, 4, 32, 32).half()
    expected = head.loss(*zip(maps.float(), scores.float()))
    with torch.autocast('cpu', torch.float16):
        loss = head.loss(*zip(maps, scores))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)


def test_shown_and_evaluated_as_a_user_does(data_root, images, tmp_path, run_here, require):
    """By `mmdense show`, and by tools/test.py with both ways of counting."""
    require('mmseg')
    path = 'configs/densesiam/densesiam_unsup-seg_resnet18_1xb16-50e_camvid.py'
    cfg = load_recipe(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(cfg.model)
    meta = dict(cfg=cfg.pretty_text, mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'epoch_1.pth')
    out = tmp_path / 'pages'
    main(['show', str(tmp_path / 'epoch_1.pth'), images, '--out', str(out), '--number', '1'])
    assert (out / 'groups.png').is_file(), list(out.iterdir())
    code, printed = run_here(
        *('test.py', path, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 'test'),
        *('--cfg-options', f'test_dataloader.dataset.data_root={data_root}/camvid'),
        *('test_dataloader.dataset.indices=3', 'test_dataloader.num_workers=0'),
        'test_dataloader.persistent_workers=False',
    )
    assert code == 0, printed.err
    found = dict(re.findall(r'(\w+/\w+): ([\d.]+)', printed.out.splitlines()[-1]))
    assert {'one_to_one/mIoU', 'published_counting/mIoU', 'published_counting/mAcc'} <= set(found)


def test_predict():
    """The class of a pixel is the best of the projector's scores, upsampled before the argmax."""
    model = MODELS.build(segmenter_config()).eval()
    images = torch.randn(2, 3, 64, 96)
    samples = model(images, mode='predict')
    scores = model.neck(model.decoder(model.backbone(images)))
    assert scores.shape == (2, 8, 16, 24)
    expected = interpolate(scores, (64, 96), mode='bilinear').argmax(1)
    assert torch.equal(torch.stack([s.pred_sem_seg.data[0] for s in samples]), expected)
    assert model.num_groups == 8
    with pytest.raises(InputError, match='DenseSiam predicts on a batch of images'):
        model([images, images], mode='predict')
    with pytest.raises(InputError, match='2 images but 1 data samples'):
        model(images, [samples[0]], mode='predict')
    with pytest.raises(InputError, match='without a decoder pretrains a backbone'):
        MODELS.build(config())(images, mode='predict')


def test_files_of_the_authors(tmp_path):
    """Their checkpoint fills the segmentation variant, and its backbone a network."""
    from mmdense.checkpoints import read_checkpoint, recognise

    theirs = MODELS.build(segmenter_config())
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    names = {ours: name for name, ours in theirs.AUTHORS[0].names.items()}
    state = {}
    for name, value in theirs.state_dict().items():
        if not name.startswith('backbone.'):
            prefix = next(ours for ours in names if name.startswith(ours))
            name = names[prefix] + name[len(prefix) :]
        state[name] = value
    assert {'decoder.layer1.weight', 'projector.6.bias', 'kernel_predictor.3.bias'} <= set(state)
    assert state['decoder.layer1.weight'].shape[1] == 512  # of res5
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'latest.pth')
    found = recognise(read_checkpoint(tmp_path / 'latest.pth'))
    assert (found.source, found.algorithm_type) == ('DenseSiam', 'DenseSiam')
    assert found.backbone.keys() == theirs.backbone.state_dict().keys()
    ours = MODELS.build(segmenter_config())
    ours.load_state_dict(ours.as_new_run(found.algorithm), strict=True)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(predictor=None), 'DenseSiam needs a neck and a predictor'),
        (dict(image_predictor=None), 'needs both of image_branch=True in the neck and image_pre'),
        (regions(512, 8) | dict(region_neck=None), 'needs both of region_neck and region_head'),
        (dict(auxiliary_neck=mlp(8, 8, 8, 2)), 'needs both of auxiliary_neck and'),
        (
            dict(auxiliary_neck=mlp(8, 8, 8, 2), auxiliary_predictor=mlp(8, 8, 8, 2)),
            'without decoder has no auxiliary_neck',
        ),
        (
            segmenter_config(image_predictor=mlp(8, 8, 8, 2)),
            'with decoder has no image_predictor',
        ),
        (dict(image_weight=0), 'image_weight must be a number above 0'),
        (dict(region_weight=-1), 'region_weight must be a number above 0'),
    ],
)
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_wrong_maps_say_so():
    model = MODELS.build(segmenter_config(backbone=dict(type='mmpretrain.ResNet', depth=18)))
    with pytest.raises(InputError, match='out_indices of the backbone to all of its stages'):
        model.group_scores(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    'path, epochs, images',
    [
        ('configs/densesiam_r50_in1k.py', 200, ('data/imagenet', 'train')),
        ('configs/densesiam_r50_coco.py', 800, ('data/coco', 'train2017')),
    ],
)
def test_pretraining_recipe(path, epochs, images):
    """SimSiam's, with its networks on every location."""
    config, simsiam = load_recipe(path), load_recipe('configs/simsiam_r50_in1k.py')
    assert config.train_cfg.max_epochs == epochs
    dataset = config.train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix) == images
    for key in ('optim_wrapper', 'param_scheduler', 'train_pipeline', 'auto_scale_lr'):
        assert config[key] == simsiam[key], key
    assert config.default_hooks.predictor_lr == simsiam.default_hooks.predictor_lr
    model, theirs = (MODELS.build(cfg.model) for cfg in (config, simsiam))
    shapes = [[p.shape for p in part.parameters()] for part in (model.neck.image, theirs.neck)]
    assert shapes[0] == shapes[1]
    shapes = [
        [p.shape for p in part.parameters()]
        for part in (model.image_predictor, theirs.head.predictor)
    ]
    assert shapes[0] == shapes[1]
    dense = [p.flatten(1).shape if p.dim() > 1 else p.shape for p in model.neck.dense.parameters()]
    assert dense == [p.shape for p in theirs.neck.parameters()]
    assert model.region_head is None


def test_segmentation_recipe():
    """The authors' config, in numbers."""
    config = load_recipe('configs/densesiam_r18_stuff27.py')
    optimizer = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
    assert config.optim_wrapper == dict(type='OptimWrapper', optimizer=optimizer)
    assert 'param_scheduler' not in config and config.train_cfg.max_epochs == 10
    assert config.train_dataloader.batch_size * 4 == config.auto_scale_lr.base_batch_size == 256
    assert config.custom_hooks == [dict(type='RegionWarmupHook', epochs=8)]
    for part in ('backbone', 'neck', 'predictor', 'auxiliary_neck', 'auxiliary_predictor'):
        assert config.model[part].norm_cfg.type == 'SyncBN', part
    assert config.model.backbone.init_cfg.checkpoint == 'torchvision://resnet18'
    model = MODELS.build(config.model)
    published = dict(
        decoder=[(128, n, 1, 1) for n in (64, 128, 256, 512)],
        neck=[(128, 128, 1, 1)] * 2 + [(27, 128, 1, 1)],
        predictor=[(128, 27, 1, 1), (27, 128, 1, 1)],
        auxiliary_neck=[(128, 128, 1, 1)] * 3,
        auxiliary_predictor=[(128, 128, 1, 1)] * 2,
        region_head=[(128, 128)] * 5,
    )
    for part, shapes in published.items():
        weights = [tuple(p.shape) for p in getattr(model, part).parameters() if p.dim() > 1]
        assert weights == shapes, part
    biased = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None
    }
    assert biased == {
        *(f'decoder.lateral_convs.{i}' for i in range(4)),
        *('neck.mlp.6', 'predictor.mlp.3', 'auxiliary_neck.mlp.6', 'auxiliary_predictor.mlp.3'),
        'region_head.predictor.mlp.3',
    }
    plain = [n for n, m in model.named_modules() if getattr(m, 'affine', True) is False]
    assert plain == ['neck.mlp.7', 'auxiliary_neck.mlp.7', 'region_head.projector.mlp.7']


@pytest.mark.parametrize('side', [640, 384])
def test_segmentation_views(side, images):
    """Colours first, in the square; the second view is all of it."""
    from mmdense.registry import TRANSFORMS

    name = 'r18_stuff27' if side == 640 else 'unsup-seg_resnet18_1xb16-50e_camvid'
    pipeline = load_recipe(f'configs/densesiam/densesiam_{name}.py').train_pipeline
    kinds = [[t.type for t in transforms] for transforms in pipeline[3].transforms]
    colours = ['ColorJitter'] * 4 + ['RandomGrayscale', 'GaussianBlur']
    assert kinds == [[*colours, 'RandomSquareCrop', 'RandomFlip'], [*colours, 'RandomResizedCrop']]
    results = dict(img_path=f'{images}/00.jpg')
    for transform in map(TRANSFORMS.build, pipeline):
        results = transform(results)
        if type(transform).__name__ == 'CenterCrop':
            assert results['img'].shape == (side, side, 3)
    assert [tuple(view.shape) for view in results['inputs']] == [(3, side // 2, side // 2)] * 2
    first, second = results['data_samples'].view_boxes
    assert second.tolist() == [0, 0, 1, 1]
    assert 0.5 - 1 / side <= first[3] - first[1] == pytest.approx(abs(first[2] - first[0]))
