# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test UP-DETR against the authors' code: attention mask, queries, network, matching and losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tiny_algorithms import PAIRS, Tiny, health_names, tiny_model

from mmdense.models import UPDETR
from mmdense.models.selfsup.detector import box_targets, image_sizes
from mmdense.models.selfsup.updetr import block_mask
from mmdense.models.utils.authors_names import authors_detr_names, name_detr_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='UPDETR',
        family='detector',
        parts=lambda norm: dict(detector=tiny_detector()),
        product='detector',
        fix=draw_by_embedding,
        recipe='updetr_r50_coco',
        options=[
            'model.detector.num_queries=20',
            'model.detector.encoder.num_layers=1',
            'model.detector.decoder.num_layers=2',
        ],
        health=health_names(patches=PAIRS),
        losses=['loss', 'loss_cls', 'loss_bbox', 'loss_iou', 'loss_feature'],
        probed='feature_align',
        collapses=False,
        multi_view=2,
        passes=0,
    )


def tiny_detector(dim=32, heads=4, ffn=48, layers=(1, 2), queries=20, pre_norm=True, channels=None):
    """Return the config of a small DETR without its backbone."""
    attention = dict(embed_dims=dim, num_heads=heads, dropout=0.0, batch_first=True)
    forward = dict(
        embed_dims=dim,
        feedforward_channels=ffn,
        num_fcs=2,
        ffn_drop=0.0,
        act_cfg=dict(type='ReLU', inplace=True),
    )
    neck = dict(type='ChannelMapper', kernel_size=1, out_channels=dim, act_cfg=None, num_outs=1)
    if channels is not None:
        neck['in_channels'] = [channels]
    decoder = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=forward)
    encoder = dict(self_attn_cfg=dict(attention), ffn_cfg=dict(forward))
    return dict(
        type='mmdense.PreNormDETR' if pre_norm else 'mmdet.DETR',
        num_queries=queries,
        neck=neck,
        encoder=dict(num_layers=layers[0], layer_cfg=encoder),
        decoder=dict(num_layers=layers[1], layer_cfg=decoder, return_intermediate=True),
        positional_encoding=dict(num_feats=dim // 2, normalize=True),
        bbox_head=dict(type='DETRHead', num_classes=2, embed_dims=dim, **head_losses()),
        train_cfg=dict(assigner=assigner()),
        test_cfg=dict(max_per_img=queries),
    )


def head_losses():
    """Return the losses of mmdet's config of DETR."""
    return dict(
        loss_cls=dict(
            type='CrossEntropyLoss',
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0,
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    )


def assigner():
    """Return the matching of mmdet's config of DETR."""
    return dict(
        type='HungarianAssigner',
        match_costs=[
            dict(type='ClassificationCost', weight=1.0),
            dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=2.0),
        ],
    )


def draw_by_embedding(model):
    """Drop the patches of queries by what the patches look like, the same in every process."""

    def draw(queries):
        return (queries.sum(2) * 1e3).sin().abs()

    model.draw = draw


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


def build(channels, queries, patches, backbone=None, **detector):
    """Build UP-DETR with a small backbone whose last map has so many channels."""
    torch.manual_seed(0)
    small = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=channels // 8)
    return MODELS.build(
        dict(
            type='UPDETR',
            backbone=backbone or small,
            num_patches=patches,
            detector=tiny_detector(queries=queries, channels=channels, **detector),
        )
    )


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_attention_mask(golden):
    arrays = golden('updetr_attention_mask')
    for queries, patches in arrays['configs'].tolist():
        expected = arrays[f'blocked_{queries}_{patches}']
        assert torch.equal(block_mask(queries, patches), expected)
    # more patches than queries of a patch: the authors' loop leaves rows that see nothing
    assert not block_mask(12, 6).all(dim=1).any()


@pytest.mark.parametrize('name', ['updetr_forward', 'updetr_forward_postnorm'])
def test_network(golden, name):
    arrays = golden(name)
    weights = {k[len('weights.') :]: v for k, v in arrays.items() if k.startswith('weights.')}
    queries, patches = int(arrays['num_queries']), int(arrays['num_patches'])
    model = build(
        24, queries, patches, heads=int(arrays['num_heads']), layers=count_layers(weights),
        pre_norm=bool(arrays['pre_norm']),
    )  # fmt: skip
    state = name_detr_layers(
        {(k if k in UPDETR_PARTS else f'detector.{k}'): v for k, v in weights.items()}
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith('detector.backbone.') for key in missing)
    model.train()

    padding = arrays['padding']
    sizes = image_sizes(arrays['image_feature'])
    for one, mask in zip(sizes, padding):
        shape = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
        one.set_metainfo(dict(img_shape=shape))
    features = arrays['patch_feature_maps'].mean(dim=(2, 3)).unflatten(0, (-1, patches))
    close(features.flatten(0, 1), arrays['gt_feature'], 1e-5)
    model.draw = lambda _: arrays['uniform']
    head = model.detector.bbox_head
    hidden = model.detect((arrays['image_feature'],), features, sizes)
    logits, boxes = head(hidden)
    close(logits, arrays['out_logits'], 1e-4)
    close(boxes, arrays['out_boxes'], 1e-4)
    close(model.feature_align(hidden), arrays['out_feature'], 1e-4)

    model.eval()
    some = int(arrays['eval_num_patches'])
    hidden = model.detect((arrays['image_feature'],), features[:, :some], sizes)
    logits, boxes = head(hidden)
    close(logits[-1], arrays['eval_logits'], 1e-4)
    close(boxes[-1], arrays['eval_boxes'], 1e-4)
    close(model.feature_align(hidden)[-1], arrays['eval_feature'], 1e-4)


UPDETR_PARTS = (
    *('patch2query.weight', 'patch2query.bias'),
    *(f'feature_align.layers.{i}.{kind}' for i in (0, 1) for kind in ('weight', 'bias')),
)


def count_layers(names):
    """Return the layers of encoder and decoder in an authors' file."""
    return tuple(
        1 + max(int(n.split('.')[3]) for n in names if n.startswith(f'transformer.{part}.layers.'))
        for part in ('encoder', 'decoder')
    )


def test_losses_and_matching(golden):
    arrays = golden('updetr_losses')
    layers, images, queries, channels = arrays['features'].shape
    patches = arrays['target_features'].size(1)
    model = build(24, queries, patches, layers=(1, layers))
    model.feature_align = nn.Identity()  # the vector gives its outputs
    inputs = [arrays[k].clone().requires_grad_() for k in ('logits', 'boxes', 'features')]
    cx, cy, w, h = arrays['target_boxes'].unbind(-1)
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)
    sizes = image_sizes(torch.zeros(images, 3, 480, 640))
    found = []
    take = model.matches.take
    model.matches.take = lambda number: found.append(take(number)) or found[-1]
    losses = model.losses(*inputs, arrays['target_features'], boxes, sizes)
    names = dict(loss_cls='ce', loss_bbox='bbox', loss_iou='giou', loss_feature='feature')
    weights = dict(loss_cls=1, loss_bbox=5, loss_iou=2, loss_feature=1)
    assert losses.keys() == names.keys()
    for ours, theirs in names.items():
        expected = sum(arrays[f'layer{i}.loss_{theirs}'] for i in range(layers)) * weights[ours]
        close(losses[ours], expected, 1e-5)
    for i in range(layers):
        query, target = arrays[f'layer{i}.match_query'], arrays[f'layer{i}.match_target']
        for n in range(images):
            matched = (found[0][i, n] >= 0).nonzero().flatten()
            assert torch.equal(matched, query[n])
            assert torch.equal(found[0][i, n, matched], target[n])
    total = sum(losses.values())
    close(total, arrays['total'], 1e-5)
    total.backward()
    for tensor, name in zip(inputs, ('logits', 'boxes', 'features')):
        close(tensor.grad, arrays[f'grad_{name}'], 1e-5)


def test_names_of_the_authors(golden):
    """At full size: every tensor, its shape, and back."""
    arrays = golden('updetr_checkpoint_keys')
    shapes = [tuple(map(int, s.split())) for s in arrays['shapes']]
    theirs = dict(zip(arrays['keys'].tolist(), shapes))
    ours = dict(zip(arrays['keys'].tolist(), arrays['mmdet_names'].tolist()))
    file = {name: torch.empty(shape, device='meta') for name, shape in theirs.items()}
    kept = {f'detector.{k}': v for k, v in file.items() if ours[k]}
    kept = {k.replace('detector.backbone.0.body.', 'detector.backbone.'): v for k, v in kept.items()}
    named = name_detr_layers(kept)
    expected = {f'detector.{name}': theirs[key] for key, name in ours.items() if name}
    assert {key: tuple(value.shape) for key, value in named.items()} == expected
    back = authors_detr_names({k[len('detector.') :]: v for k, v in named.items()})
    assert {k: tuple(v.shape) for k, v in back.items()} == {k: theirs[k] for k in ours if ours[k]}


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_rows_of_a_class_head(golden, kind):
    arrays = golden('detr_coco_head')
    for part in ('weight', 'bias'):
        file = {f'detector.class_embed.{part}': arrays[f'{kind}_{part}']}
        (ours,) = name_detr_layers(file).values()
        assert torch.equal(ours, arrays[f'mmdet_{kind}_{part}'])
