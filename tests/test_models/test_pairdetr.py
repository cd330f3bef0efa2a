# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test Pair DETR: Conditional DETR's published network and losses, and what is added to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from tiny_algorithms import PAIRS, Tiny, health_names

from mmdense.models.losses import pair_contrast
from mmdense.models.selfsup.detector import image_sizes
from mmdense.models.utils.authors_names import authors_detr_names, name_detr_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='PairDETR',
        family='supervised detector',
        parts=lambda norm: dict(detector=tiny_detector()),
        product='detector',
        fix=spread_queries,
        recipe='pairdetr_r50_coco',
        options=[],
        health=health_names(global_=PAIRS),
        losses=[
            *('loss_cls', 'loss_bbox', 'loss_iou'),
            *('loss_corner_bbox', 'loss_corner_iou', 'loss_contrastive'),
        ],
        probed='corner_decoder',
        collapses=False,
        # the number of matches in each of two layers, for classes and for boxes; of objects
        calls=lambda image, patches, seen: [('all_reduce', 4)] * 5,
    )


def tiny_detector(queries=7, classes=3, ffn=32, layers=(1, 2), channels=None, heads=8):
    """Return the config of a small Conditional DETR without its backbone; its embeddings have 256
    channels, as mmdet's class needs."""
    attention = dict(embed_dims=256, num_heads=heads, dropout=0.0, batch_first=True)
    parts = dict(embed_dims=256, num_heads=heads, attn_drop=0.0, proj_drop=0.0)
    forward = dict(
        embed_dims=256,
        feedforward_channels=ffn,
        num_fcs=2,
        ffn_drop=0.0,
        act_cfg=dict(type='ReLU', inplace=True),
    )
    neck = dict(type='ChannelMapper', kernel_size=1, out_channels=256, act_cfg=None, num_outs=1)
    if channels is not None:
        neck['in_channels'] = [channels]
    decoder = dict(
        self_attn_cfg=dict(parts, cross_attn=False),
        cross_attn_cfg=dict(parts, cross_attn=True),
        ffn_cfg=forward,
    )
    return dict(
        type='mmdense.ConditionalDETR',
        num_queries=queries,
        neck=neck,
        encoder=dict(
            num_layers=layers[0], layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=dict(forward))
        ),
        decoder=dict(num_layers=layers[1], layer_cfg=decoder, return_intermediate=True),
        positional_encoding=dict(num_feats=128, normalize=True),
        bbox_head=dict(
            type='ConditionalDETRHead',
            num_classes=classes,
            embed_dims=256,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, loss_weight=2.0),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type='FocalLossCost', weight=2.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=queries),
    )


def spread_queries(model):
    """Let the queries of a new detector find different boxes: if all find one box, every match is
    as good. Gradients reach all layers where the last one is not 0."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.detector.query_embedding.weight *= 3
        for last in (model.detector.bbox_head.fc_reg, model.corner_embed.layers[-1]):
            last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=rng))


@pytest.fixture
def golden():
    def load(name):
        with np.load(GOLDEN / f'{name}.npz') as arrays:
            found = {key: arrays[key] for key in arrays.files}
        return {
            key: torch.from_numpy(value) if value.dtype.kind in 'fib' else value
            for key, value in found.items()
        }

    return load


def build(channels=64, **detector):
    """Build Pair DETR with a small backbone whose last map has so many channels."""
    torch.manual_seed(0)
    backbone = dict(
        type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=channels // 8
    )
    return MODELS.build(
        dict(
            type='PairDETR',
            backbone=backbone,
            detector=tiny_detector(channels=channels, **detector),
        )
    )


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def by_our_names(weights):
    """Return tensors in the authors' names by ours; those of the corner's decoder too."""
    corner, rest = {}, {}
    for name, value in weights.items():
        if name.startswith('transformer.corner_decoder.'):
            corner[f'x.{name.replace("corner_decoder", "decoder")}'] = value
        else:
            rest[name if name.startswith('corner_embed.') else f'detector.{name}'] = value
    corner = name_detr_layers(corner, prefix='x.')
    corner = {name.replace('x.decoder.', 'corner_decoder.'): v for name, v in corner.items()}
    return {**name_detr_layers(rest), **corner}


def test_network(golden):
    arrays = golden('pairdetr_forward')
    weights = {
        key: torch.from_numpy(
            np.random.RandomState(seed)
            .standard_normal(tuple(map(int, shape.split())))
            .astype(np.float32)
            * np.float32(scale)
            + np.float32(offset)
        )
        for key, seed, scale, offset, shape in zip(
            arrays['weight_keys'].tolist(),
            arrays['weight_seeds'].tolist(),
            arrays['weight_scales'].numpy(),
            arrays['weight_offsets'].numpy(),
            arrays['weight_shapes'].tolist(),
        )
    }
    count = [
        1 + max(int(k.split('.')[3]) for k in weights if k.startswith(f'transformer.{part}.layers'))
        for part in ('encoder', 'decoder')
    ]
    ffn = weights['transformer.encoder.layers.0.linear1.weight'].size(0)
    model = build(
        24, queries=int(arrays['num_queries']), classes=arrays['center_logits'].size(-1), ffn=ffn,
        layers=tuple(count), heads=int(arrays['num_heads']),
    ).eval()  # fmt: skip
    # the vector's map has fewer channels than a backbone's
    dim = arrays['feature'].size(1)
    model.detector.neck.convs[0].conv = torch.nn.Conv2d(dim, 256, 1)
    model.detector.neck.in_channels = [dim]
    missing, unexpected = model.load_state_dict(by_our_names(weights), strict=False)
    assert not unexpected
    assert all(key.startswith('detector.backbone.') for key in missing)

    sizes = image_sizes(arrays['feature'])
    for one, mask in zip(sizes, arrays['padding']):
        one.set_metainfo(dict(img_shape=(int((~mask[:, 0]).sum()), int((~mask[0]).sum()))))
    center, corner = model.decode(model.detector.neck((arrays['feature'],)), sizes)
    logits, boxes = model.detector.bbox_head(*center)
    found = dict(
        center_hidden=center[0],
        center_reference=center[1],
        center_logits=logits,
        center_boxes=boxes,
        corner_hidden=corner[0],
        corner_reference=corner[1],
        corner_boxes=model.corner_boxes(*corner),
    )
    for name, value in found.items():
        close(value, arrays[name], 1e-4)


def objects(arrays, size=(480, 640)):
    """Return the targets of a vector as mmdet's pipelines give them."""
    h, w = size
    samples = []
    boxes, labels = (
        arrays[key].split(arrays['num_targets'].tolist())
        for key in ('target_boxes', 'target_labels')
    )
    for one, label in zip(boxes, labels):
        center, half = one[:, :2], one[:, 2:] / 2
        pixels = torch.cat([center - half, center + half], dim=1) * torch.tensor([w, h, w, h])
        sample = BaseDataElement(metainfo=dict(img_shape=size, batch_input_shape=size))
        sample.gt_instances = InstanceData(bboxes=pixels, labels=label)
        samples.append(sample)
    return samples


def test_losses_and_matching(golden):
    arrays = golden('pairdetr_losses')
    layers, _, queries, classes = arrays['logits'].shape
    model = build(queries=queries, classes=classes, layers=(1, layers))
    assert (model.temperature, model.contrastive_weight) == (
        pytest.approx(arrays['temperature'].item()),
        arrays['contrastive_weight'].item(),
    )
    names = ('logits', 'center_boxes', 'corner_boxes', 'center_hidden', 'corner_hidden')
    inputs = [arrays[name].clone().requires_grad_() for name in names]
    losses = model.losses(*inputs, objects(arrays))
    written = dict(
        loss_cls=('center.loss_ce', 2),
        loss_bbox=('center.loss_bbox', 5),
        loss_iou=('center.loss_giou', 2),
        loss_corner_bbox=('corner.loss_bbox', 5),
        loss_corner_iou=('corner.loss_giou', 2),
    )
    assert losses.keys() == {*written, 'loss_contrastive'}
    for ours, (theirs, weight) in written.items():
        expected = sum(arrays[f'layer{i}.{theirs}'] for i in range(layers)) * weight
        close(losses[ours], expected, 1e-5)
    close(losses['loss_contrastive'], arrays['loss_contrastive'], 1e-5)
    total = sum(losses.values())
    close(total, arrays['total'], 1e-5)
    total.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in inputs)


def test_contrast_written_out():
    first, second = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    rows = []
    for a, b in zip(first, second):
        z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1).double()
        for i in range(8):
            others = sum(((z[i] @ z[k]) / 0.2).exp() for k in range(8) if k != i)
            rows.append(-(((z[i] @ z[(i + 4) % 8]) / 0.2).exp() / others).log())
    close(pair_contrast(first, second, 0.2), sum(rows).float() / 16, 1e-5)
    # a single query has no negative
    assert pair_contrast(first[:, :1], second[:, :1]) == 0
    with pytest.raises(InputError, match='pair_contrast takes N×Q×C twice'):
        pair_contrast(first, second[:, :3])


def test_names_of_the_authors(golden):
    """At full size: every tensor, its shape, and back."""
    arrays = golden('conditional_detr_checkpoint_keys')
    shapes = [tuple(map(int, s.split())) for s in arrays['shapes']]
    theirs = dict(zip(arrays['keys'].tolist(), shapes))
    ours = dict(zip(arrays['keys'].tolist(), arrays['mmdet_names'].tolist()))
    assert all(ours.values())
    file = {
        f'detector.{name}'.replace('backbone.0.body.', 'backbone.'): torch.empty(
            shape, device='meta'
        )
        for name, shape in theirs.items()
    }
    head = ours['class_embed.weight'], ours['class_embed.bias']
    named = {k[len('detector.') :]: tuple(v.shape) for k, v in name_detr_layers(file).items()}
    assert named.keys() == set(ours.values())
    for key, name in ours.items():
        # COCO's 91 category numbers, of which 80 are classes
        expected = (80, *theirs[key][1:]) if name in head else theirs[key]
        assert named[name] == expected, name
    back = authors_detr_names({k: torch.empty(v, device='meta') for k, v in named.items()})
    assert back.keys() == theirs.keys()
