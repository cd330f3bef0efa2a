# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test DETReg against the authors' code: networks, matching, losses, proposals, names."""

import copy
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample
from PIL import Image
from recipes import REPO, load_recipe
from tiny_algorithms import (
    PAIRS,
    Tiny,
    health_names,
    joined_batch,
    tiny_model,
    tiny_model_config,
)
from torch import nn

from mmdense.checkpoints import (
    convert_detector,
    describe_product,
    read_checkpoint,
    recognise,
    save_backbone,
)
from mmdense.datasets import CropProposal, LoadProposals, MultiView, RandomSizeCrop
from mmdense.datasets.transforms.proposals import ProposalTable
from mmdense.models import DETReg
from mmdense.models.selfsup.base import RunFacts
from mmdense.models.selfsup.detector import box_targets, image_sizes
from mmdense.models.selfsup.detreg import Targets, find_targets
from mmdense.models.utils.authors_names import authors_detr_names, name_detr_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='DETReg',
        family='detector',
        parts=lambda norm: dict(detector=deformable()),
        variants=dict(DETRegOnDETR=lambda norm: dict(detector=detr())),
        product='detector',
        fix=spread_boxes,
        recipe='detreg_r50_coco',
        options=[
            'model.detector.num_queries=40',
            'model.detector.encoder.num_layers=1',
            'model.detector.decoder.num_layers=2',
            'model.detector.encoder.layer_cfg.ffn_cfg.feedforward_channels=64',
            'model.detector.decoder.layer_cfg.ffn_cfg.feedforward_channels=64',
            'train_dataloader.dataset.pipeline.2.transforms.0.0.size_range=(48,64)',
            'train_dataloader.dataset.pipeline.2.transforms.0.1.scale=64',
            'train_dataloader.dataset.pipeline.2.transforms.1.0.scale=32',
        ],
        health=health_names(global_=PAIRS),
        losses=['loss_cls', 'loss_bbox', 'loss_iou', 'loss_embedding'],
        probed='feature_embed',
        collapses=False,
        multi_view=2,
        passes=1,
        proposals=lambda image: 30,
        # the classes and the number of matches in each of two layers, and of targets
        calls=lambda image, patches, seen: [('all_reduce', 4)] * 5,
    )


def spread_boxes(model):
    """Let the queries of a new detector find different boxes: if all find one box, every match is
    as good."""
    with torch.no_grad():
        model.detector.query_embedding.weight *= 3
        head = model.detector.bbox_head
        last = head.fc_reg if hasattr(head, 'fc_reg') else head.reg_branches[0][-1]
        last.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))


def deformable(
    dim=32, heads=4, ffn=48, layers=(1, 2), queries=40, classes=4, levels=2, points=2, channels=None
):
    """Return the config of a small Deformable DETR without its backbone."""
    neck = dict(
        type='ChannelMapper',
        kernel_size=1,
        out_channels=dim,
        act_cfg=None,
        bias=True,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=levels,
    )
    if channels is not None:
        neck['in_channels'] = channels
    sampled = dict(
        embed_dims=dim, num_heads=heads, num_levels=levels, num_points=points, dropout=0.0,
        batch_first=True,
    )  # fmt: skip
    plain = dict(embed_dims=dim, num_heads=heads, dropout=0.0, batch_first=True)
    forward = dict(embed_dims=dim, feedforward_channels=ffn, ffn_drop=0.0)
    return dict(
        type='mmdense.DeformableDETR',
        num_queries=queries,
        num_feature_levels=levels,
        with_box_refine=False,
        as_two_stage=False,
        neck=neck,
        encoder=dict(
            num_layers=layers[0], layer_cfg=dict(self_attn_cfg=sampled, ffn_cfg=dict(forward))
        ),
        decoder=dict(
            num_layers=layers[1],
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=plain, cross_attn_cfg=dict(sampled), ffn_cfg=dict(forward)
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5),
        bbox_head=dict(
            type='DeformableDETRHead',
            num_classes=classes,
            embed_dims=dim,
            sync_cls_avg_factor=True,
            loss_cls=dict(
                type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(assigner=assigner(dict(type='FocalLossCost', weight=2.0))),
        test_cfg=dict(max_per_img=queries),
    )


def detr(dim=32, heads=4, ffn=48, layers=(1, 2), queries=40, classes=4, channels=None):
    """Return the config of a small pre-norm DETR without its backbone."""
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
        neck['in_channels'] = channels
    return dict(
        type='mmdense.PreNormDETR',
        num_queries=queries,
        neck=neck,
        encoder=dict(
            num_layers=layers[0],
            layer_cfg=dict(self_attn_cfg=dict(attention), ffn_cfg=dict(forward)),
        ),
        decoder=dict(
            num_layers=layers[1],
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=forward),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5),
        bbox_head=dict(
            type='DETRHead',
            num_classes=classes,
            embed_dims=dim,
            sync_cls_avg_factor=True,
            loss_cls=dict(
                type='CrossEntropyLoss',
                bg_cls_weight=0.1,
                use_sigmoid=False,
                loss_weight=1.0,
                class_weight=1.0,
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(assigner=assigner(dict(type='ClassificationCost', weight=1.0))),
        test_cfg=dict(max_per_img=queries),
    )


def assigner(cost):
    """Return the matching of mmdet's configs, with the cost of classes."""
    return dict(
        type='HungarianAssigner',
        match_costs=[
            cost,
            dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=2.0),
        ],
    )


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


def build(detector):
    """Build DETReg on a detector, with a small backbone."""
    torch.manual_seed(0)
    small = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    return MODELS.build(dict(type='DETReg', backbone=small, detector=detector))


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', ['detreg_forward', 'detreg_detr_forward'])
def test_network(golden, name):
    arrays = golden(name)
    weights = {k[len('weights.') :]: v for k, v in arrays.items() if k.startswith('weights.')}
    maps = [arrays[f'feature{i}'] for i in range(2) if f'feature{i}' in arrays]
    channels = [one.size(1) for one in maps]
    queries, classes = arrays['out_logits'].shape[2:]
    settings = dict(
        heads=int(arrays['num_heads']), layers=(1, 2), queries=queries, channels=channels
    )
    if name == 'detreg_forward':
        detector = deformable(
            dim=64,
            classes=classes,
            levels=int(arrays['num_levels']),
            points=int(arrays['num_points']),
            **settings,
        )
    else:
        detector = detr(classes=classes - 1, **settings)
    small = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    encoder = dict(small, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    model = MODELS.build(
        dict(type='DETReg', backbone=small, detector=detector, object_encoder=encoder)
    )
    outputs = weights['feature_embed.layers.1.weight'].size(0)
    model.feature_embed.layers[-1] = nn.Linear(detector['neck']['out_channels'], outputs)
    state = {k if k.startswith('feature_embed.') else f'detector.{k}': v for k, v in weights.items()}
    missing, unexpected = model.load_state_dict(
        name_detr_layers(state, coco_rows=False), strict=False
    )
    assert not unexpected
    assert all(key.startswith(('detector.backbone.', 'object_encoder.')) for key in missing)
    model.eval()
    padded = tuple(arrays['batch_input_shape'].tolist())
    sizes = [
        BaseDataElement(metainfo=dict(img_shape=tuple(shape), batch_input_shape=padded))
        for shape in arrays['img_shapes'].tolist()
    ]
    state = model.detector.forward_transformer(model.detector.neck(maps), sizes)
    logits, boxes = model.detector.bbox_head(**state)
    close(logits, arrays['out_logits'], 1e-4)
    close(boxes, arrays['out_boxes'], 1e-4)
    close(model.feature_embed(state['hidden_states'][-1]), arrays['out_embedding'], 1e-4)


def corners(boxes):
    """Return boxes (cx, cy, w, h) as (x0, y0, x1, y1)."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


@pytest.mark.parametrize('kind', ['deformable', 'detr'])
def test_matching(golden, kind):
    arrays = golden('detreg_matching')
    classes = arrays['logits'].size(2)
    if kind == 'deformable':
        model = build(deformable(classes=classes, channels=[64]))
    else:
        model = build(detr(classes=classes - 1, channels=[64]))
    sizes = image_sizes(torch.zeros(2, 3, 480, 640))
    boxes = corners(arrays['target_boxes']).split(arrays['num_targets'].tolist())
    recorder = model.matches
    for n, target in enumerate(box_targets(boxes, 1, sizes)):
        h, w = sizes[n].img_shape
        scale = torch.tensor([w, h, w, h])
        predictions = BaseDataElement()
        from mmengine.structures import InstanceData

        predictions = InstanceData(
            scores=arrays['logits'][n], bboxes=corners(arrays['boxes'][n]) * scale
        )
        costs = [
            cost(pred_instances=predictions, gt_instances=target, img_meta=sizes[n].metainfo)
            for cost in recorder.assigner.match_costs
        ]
        close(sum(costs), arrays[f'{kind}.cost{n}'], 1e-5)
        recorder.assign(
            pred_instances=predictions, gt_instances=target, img_meta=sizes[n].metainfo
        )
    match = recorder.take(2)[0]
    for n in range(2):
        query = (match[n] >= 0).nonzero().flatten()
        assert torch.equal(query, arrays[f'{kind}.match_query{n}'])
        assert torch.equal(match[n, query], arrays[f'{kind}.match_target{n}'])


def losses_of(model, arrays):
    """Return the losses and the predictions that they are of."""
    logits, boxes, embedding = (
        arrays[k].clone().requires_grad_() for k in ('logits', 'boxes', 'embedding')
    )
    layers, images = logits.shape[:2]
    model.detector.bbox_head.forward = lambda *args: (logits, boxes)
    model.feature_embed = nn.Identity()  # the vector gives its outputs
    # only the last layer's are read
    hidden = embedding.expand(layers, *embedding.shape)
    state = dict(hidden_states=hidden)
    if hasattr(model.detector, 'level_embed'):
        state.update(references=None, enc_outputs_class=None, enc_outputs_coord=None)
    counts = arrays['num_targets'].tolist()
    targets = Targets(corners(arrays['target_boxes']), counts, [])
    sizes = image_sizes(torch.zeros(images, 3, 480, 640))
    losses = model.losses(state, targets, arrays['target_embedding'], sizes)
    return losses, (logits, boxes, embedding)


@pytest.mark.parametrize('name', ['detreg_losses', 'detreg_detr_losses'])
def test_losses(golden, name):
    arrays = golden(name)
    classes = int(arrays['num_classes'])
    layers = (1, len(arrays['logits']))
    small = deformable if name == 'detreg_losses' else detr
    model = build(small(layers=layers, classes=classes, channels=[64]))
    losses, inputs = losses_of(model, arrays)
    weights = (
        dict(ce=2, bbox=5, giou=2) if name == 'detreg_losses' else dict(ce=1, bbox=5, giou=2)
    )
    for ours, theirs in dict(loss_cls='ce', loss_bbox='bbox', loss_iou='giou').items():
        expected = sum(arrays[f'layer{i}.loss_{theirs}'] for i in range(layers[1]))
        close(losses[ours], expected * weights[theirs], 1e-5)
    close(losses['loss_embedding'], arrays['loss_object_embedding'], 1e-5)
    total = sum(losses.values())
    close(total, arrays['total'], 1e-5)
    total.backward()
    for tensor, part in zip(inputs, ('logits', 'boxes', 'embedding')):
        close(tensor.grad, arrays[f'grad_{part}'], 1e-5)
