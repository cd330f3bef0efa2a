# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""CCOP: its losses by the published code's numbers, the curriculum, and the regions."""

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn
from torch.nn.functional import normalize

from mmdense.models import (
    CCOP,
    FPN,
    BoxCurriculum,
    KeyQueue,
    MomentumEncoder,
    SharedRegions,
    box_iou,
    find_shared_regions,
    intra_image_margin,
    pool_pyramid,
    pyramid_levels,
)
from mmdense.models.utils.authors_names import name_detectron2_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

COPIES, DIM = 10, 8


class DrawnByBoxes(BoxCurriculum):
    """Draws numbers that are functions of the boxes."""

    def draw(self, boxes):
        numbers = torch.arange(1, 1 + 2 * self.copies, dtype=boxes.dtype).view(2, -1, 1)
        sides = boxes[..., None, :2] + boxes[..., None, 2:]
        return [(sides * n * 0.37).frac() for n in numbers]


def draw_by_boxes(model):
    model.curriculum = DrawnByBoxes(model.curriculum.copies)


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        mlp = dict(type='DropoutMLP', hid_channels=16, out_channels=DIM, drop_rate=0.0)
        return dict(
            neck=dict(type='FPN', out_channels=8, norm_cfg=norm),
            projector=mlp,
            region_projector=mlp,
            head=dict(type='InfoNCEHead'),
            queue_len=13,
            feat_dim=DIM,
            total_steps=10,
        )

    def calls(image, patches, seen):
        # numbers of regions; images with their boxes to be encoded elsewhere, and their keys back;
        # pairs of regions; keys of images and of regions
        counts = seen[-1]
        most = max(1, max(map(max, counts)))
        copies = most * (COPIES + 1)
        return [
            ('all_gather', 3 * 8),
            ('all_to_all_single', 3 * (image + 4 * copies + most) * 4),
            ('all_to_all_single', 3 * (DIM + copies * DIM) * 4),
            ('all_reduce', 8),
            ('all_gather', 3 * DIM * 4),
            ('all_gather', max(map(sum, counts)) * DIM * 4),
        ]

    return Tiny(
        algorithm='CCOP',
        family='queue',
        parts=parts,
        backbone=dict(out_indices=(0, 1, 2, 3)),
        recipe='ccop_r50_coco',
        multi_view=2,
        options=[
            'model.neck.out_channels=16',
            'model.region_projector.hid_channels=32',
            'model.queue_len=64',
        ],
        health=health_names(global_=PAIRS, region=PAIRS),
        losses=['loss_instance', 'loss_region', 'loss_intra'],
        reads=['tolist'],  # the numbers of regions
        fix=draw_by_boxes,
        watch=watch_regions,
        calls=calls,
    )


def watch_regions():
    """Record how many regions the images of every process have."""
    from mmdense.models.selfsup import ccop

    seen, find = [], ccop.find_shared_regions

    def find_shared_regions(*args):
        regions = find(*args)
        seen.append(regions.counts)
        return regions

    ccop.find_shared_regions = find_shared_regions
    return seen


def config(hidden=16, dim=DIM, **changes):
    mlp = dict(type='DropoutMLP', hid_channels=hidden, out_channels=dim, drop_rate=0.0)
    cfg = dict(
        type='CCOP',
        backbone=dict(
            type='mmpretrain.ResNet',
            depth=18,
            stem_channels=8,
            base_channels=8,
            out_indices=(0, 1, 2, 3),
        ),
        neck=dict(type='FPN', out_channels=8),
        projector=mlp,
        region_projector=mlp,
        head=dict(type='InfoNCEHead', temperature=0.2),
        queue_len=32,
        feat_dim=dim,
        total_steps=10,
    )
    cfg.update(changes)
    return cfg


def close(ours, theirs, name=''):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda m: f'{name}: {m}')


def batch(number=4, proposals=5, size=96):
    """Views of images, the last of which has no proposal."""
    samples = []
    boxes = torch.tensor([[0.1, 0.1, 0.9, 0.8], [0.95, 0.0, 0.2, 0.9]])
    for i in range(number):
        corner = 0.2 + 0.3 * torch.rand(proposals * (i < number - 1), 2)
        sample = DataSample(metainfo=dict(view_boxes=boxes))
        sample.set_field(torch.cat([corner, corner + 0.25], dim=1), 'proposals')
        samples.append(sample)
    return list(torch.randn(2, number, 3, size, size)), samples


# ---------------------------------------------------------------- goldens


def fpn_state(g):
    state = {k[len('state/') :]: v for k, v in g.items() if k.startswith('state/')}
    return name_detectron2_layers(state)


def test_golden_fpn(golden):
    """Maps and gradients, in train mode; and strictly by the names of mmdet's FPN."""
    g = golden('ccop_fpn')
    maps = [g[f'res{i}'].requires_grad_() for i in range(2, 6)]
    neck = FPN([x.size(1) for x in maps], g['p2'].size(1))
    state = fpn_state(g)
    missing, unexpected = neck.load_state_dict(state, strict=False)
    assert not unexpected and all(k.endswith('num_batches_tracked') for k in missing)
    pyramid = neck(maps)
    for i, level in enumerate(pyramid, 2):
        close(level, g[f'p{i}'], f'p{i}')
    sum((level * g[f'weight_p{i}']).sum() for i, level in enumerate(pyramid, 2)).backward()
    close(maps[0].grad, g['grad_res2'])
    close(maps[3].grad, g['grad_res5'])


def test_golden_roi_pool(golden):
    g = golden('ccop_roi_pool')
    image = torch.arange(len(g['counts'])).repeat_interleave(g['counts'])
    assert torch.equal(pyramid_levels(g['boxes']) + 2, g['level'])
    close(pool_pyramid([g[f'p{i}'] for i in range(2, 6)], g['boxes'], image), g['pooled'])


def test_golden_curriculum(golden):
    g = golden('ccop_curriculum')
    total, curriculum = int(g['total_step']), BoxCurriculum()
    for before, *expected in zip(
        *(g[k].tolist() for k in ('iter_before_step', 'iou_thr', 'mag_xy', 'mag_wh'))
    ):
        assert curriculum.at((before + 1) / total) == pytest.approx(expected, rel=1e-5)


class Given(BoxCurriculum):
    """Has random numbers that are given."""

    def __init__(self, shift, scale, **changes):
        super().__init__(shift.size(-2), **changes)
        self.given = shift, scale

    def draw(self, boxes):
        return self.given


def test_golden_jitter(golden):
    g = golden('ccop_jitter')
    size = tuple(g['image_hw'].tolist())
    for c in range(int(g['n_cases'])):
        case = {k[len(f'c{c}_') :]: v for k, v in g.items() if k.startswith(f'c{c}_')}
        constant = dict(
            threshold=[float(case['iou_thr'])] * 2,
            shift=[float(case['mag_xy'])] * 2,
            scale=[float(case['mag_wh'])] * 2,
        )
        curriculum = Given(case['u_xy'], case['u_wh'], **{})
        for name, value in constant.items():
            setattr(curriculum, name, tuple(value))
        copies, invalid = curriculum(case['boxes'], size, 0.5)
        close(copies, case['jittered'])
        iou = box_iou(copies, case['boxes'][:, None])
        torch.testing.assert_close(iou, case['iou'], rtol=1e-5, atol=1e-5, equal_nan=True)
        assert torch.equal(invalid, case['invalid'])
        assert not invalid[:, -1].any()


def padded(rows, counts):
    """Images' rows N×R×…, padded, and which of them exist."""
    parts = rows.split(counts)
    exists = torch.arange(max(1, *counts)) < torch.tensor(counts)[:, None]
    full = rows.new_zeros(*exists.shape, *rows.shape[1:])
    for i, part in enumerate(parts):
        full[i, : len(part)] = part
    return full, exists


def test_golden_intra(golden):
    """Valid pairs by the boxes; the loss over all images, and its gradient by each image's
    similarities."""
    g = golden('ccop_intra')
    images = range(int(g['n_images']))
    most = max(len(g[f'i{i}_sim']) for i in images)
    similarity = torch.zeros(len(images), most, most)
    valid = torch.zeros(similarity.shape, dtype=torch.bool)
    for i in images:
        boxes, n = g[f'i{i}_boxes_k'], len(g[f'i{i}_sim'])
        iou = box_iou(boxes[:, None], boxes[None])
        torch.testing.assert_close(iou, g[f'i{i}_iou'], rtol=1e-5, atol=1e-5, equal_nan=True)
        similarity[i, :n, :n], valid[i, :n, :n] = g[f'i{i}_sim'], iou < 0.05
        assert torch.equal(iou < 0.05, g[f'i{i}_valid'])
    similarity.requires_grad_()
    loss = intra_image_margin(similarity, valid, float(g['margin']))
    close(loss, g['loss'])
    (grad,) = torch.autograd.grad(loss, similarity)
    for i in images:
        n = len(g[f'i{i}_sim'])
        close(grad[i, :n, :n], g[f'i{i}_grad'])
        assert not grad[i, n:].any() and not grad[i, :, n:].any()


class Maps(nn.Module):
    """Stands for a network whose outputs are given."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return self.maps


NECKS = {
    'img_neck': 'projector',
    'roi_neck': 'region_projector',
    'mlp.linear_1.0.': 'mlp.0.',
    'mlp.last_linear.': 'mlp.3.',
}


def neck_state(g, start, branch):
    """A branch's projectors by our names."""
    state = {}
    for name, value in g.items():
        if name.startswith(start) and f'neck_{branch}.' in name:
            name = name[len(start) :].replace(f'_{branch}.', '.')
            for theirs, ours in NECKS.items():
                name = name.replace(theirs, ours)
            state[name] = value
    return state


def test_golden_step(golden, monkeypatch):
    """One step through loss(): losses, gradients, momentum encoder and queues."""
    g = golden('ccop_step')
    counts, size = g['counts'].tolist(), int(g['image_size'])
    hidden, channels = g['state/img_neck_q.mlp.linear_1.0.weight'].shape
    dim, length = g['state/img_queue'].shape
    model = MODELS.build(config(hidden, dim, queue_len=length))
    leaves = {
        k: v.requires_grad_()
        for k, v in g.items()
        if k.endswith('_q') and v.dim() == 4 and not k.startswith('grad')
    }
    width = g['p2_q'].size(1)
    mlp = dict(type='DropoutMLP', hid_channels=hidden, out_channels=dim, drop_rate=0.0)
    model.projector = MODELS.build(dict(mlp, in_channels=channels))
    model.region_projector = MODELS.build(dict(mlp, in_channels=49 * width))
    levels = [f'p{i}' for i in range(2, 6)]
    model.backbone = Maps(g['res5_q'])
    model.neck = Maps(*(g[f'{p}_q'] for p in levels))
    projectors = nn.ModuleDict({n: getattr(model, n) for n in ('projector', 'region_projector')})
    projectors.load_state_dict(neck_state(g, 'state/', 'q'))
    model.encoder_k = MomentumEncoder(
        model.online_network(), 1 - float(g['momentum']), total_steps=int(g['total_step'])
    )
    momentum = model.encoder_k.module
    momentum.load_state_dict(neck_state(g, 'state/', 'k'))
    momentum['backbone'] = Maps(g['res5_k'])
    momentum['neck'] = Maps(*(g[f'{p}_k'] for p in levels))
    model.encoder_k.steps.fill_(int(g['iter_before']))
    for ours, theirs in ((model.queue, 'img'), (model.queue_regions, 'roi')):
        ours.keys.copy_(g[f'state/{theirs}_queue'])
        ours.ptr.copy_(g[f'state/{theirs}_queue_ptr'])

    query, exists = padded(g['boxes_q'], counts)
    key, _ = padded(g['boxes_k'], counts)
    shift, scale = (padded(g[name], counts)[0] for name in ('u_xy', 'u_wh'))
    monkeypatch.setattr(
        model, 'find_regions', lambda *_: SharedRegions(query, key, exists, [counts])
    )
    model.curriculum = Given(shift, scale)
    seen = {}

    def watch(name, owner, attribute):
        call = getattr(owner, attribute)

        def record(*args, **kwargs):
            seen.setdefault(name, []).append((args, kwargs))
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, record)

    watch('head', model.head, 'loss')
    losses = model.loss([torch.zeros(len(counts), 3, size, size)] * 2)
    for name, theirs in (('instance', 'img'), ('region', 'roi'), ('intra', 'intra')):
        close(losses[f'loss_{name}'], g[f'{theirs}_loss'], name)
    total = sum(losses.values())
    close(total, g['total'])

    progress = (int(g['iter_before']) + 1) / int(g['total_step'])
    expected = [float(g[name]) for name in ('iou_thr', 'mag_xy', 'mag_wh')]
    assert model.curriculum.at(progress) == pytest.approx(expected, rel=1e-5)
    copies, invalid = model.curriculum(key, (size, size), progress)
    close(copies[exists], g['jittered'])
    assert torch.equal(invalid[exists], g['invalid'])
    # which copies were chosen: their keys are the positives
    network = nn.ModuleDict(dict(momentum.items()))
    rows = exists.flatten().nonzero().flatten()
    with torch.no_grad():
        _, keys = model._encode(network, torch.zeros(len(counts), 3, size, size), copies, rows)
        r = seen['head'][1][0][0]
        masked = (keys @ r[:, :, None]).squeeze(2) + 5 * g['invalid']
    close(masked, g['masked_similarity'])
    positive = keys[torch.arange(len(keys)), g['chosen']]
    close(seen['head'][1][0][1], positive)

    total.backward()
    for name, leaf in leaves.items():
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        close(grad, g[f'grad_{name}'], name)
    online = {n: p.grad for n, p in projectors.named_parameters()}
    for name, value in neck_state(g, 'grad/', 'q').items():
        close(online[name], value, name)
    after = momentum.state_dict()
    for name, value in neck_state(g, 'after/', 'k').items():
        close(after[name], value, name)
    for ours, theirs in ((model.queue, 'img'), (model.queue_regions, 'roi')):
        close(ours.keys, g[f'after/{theirs}_queue'])
        assert torch.equal(ours.ptr, g[f'after/{theirs}_queue_ptr'])
