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
from mmengine.structures import BaseDataElement, InstanceData
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

from mmdense.apis.report.show import show
from mmdense.checkpoints import (
    SelfSupPretrained,
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
        fake=False,  # mmdet's Deformable DETR asks a tensor for its shape as a tensor
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
    state = {
        k if k.startswith('feature_embed.') else f'detector.{k}': v for k, v in weights.items()
    }
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
        predictions = InstanceData(
            scores=arrays['logits'][n], bboxes=corners(arrays['boxes'][n]) * scale
        )
        costs = [
            cost(pred_instances=predictions, gt_instances=target, img_meta=sizes[n].metainfo)
            for cost in recorder.assigner.match_costs
        ]
        close(sum(costs), arrays[f'{kind}.cost{n}'], 1e-5)
        recorder.assign(pred_instances=predictions, gt_instances=target, img_meta=sizes[n].metainfo)
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
    weights = dict(ce=2, bbox=5, giou=2) if name == 'detreg_losses' else dict(ce=1, bbox=5, giou=2)
    for ours, theirs in dict(loss_cls='ce', loss_bbox='bbox', loss_iou='giou').items():
        expected = sum(arrays[f'layer{i}.loss_{theirs}'] for i in range(layers[1]))
        close(losses[ours], expected * weights[theirs], 1e-5)
    close(losses['loss_embedding'], arrays['loss_object_embedding'], 1e-5)
    total = sum(losses.values())
    close(total, arrays['total'], 1e-5)
    total.backward()
    for tensor, part in zip(inputs, ('logits', 'boxes', 'embedding')):
        close(tensor.grad, arrays[f'grad_{part}'], 1e-5)


# ---------------------------------------------------------------- proposals


def test_proposals(golden, tmp_path):
    """From the boxes of selective search to the targets of a flipped and cut view."""
    arrays = {k: v.numpy() for k, v in golden('detreg_proposals').items()}
    height, width = arrays['image_hw']
    for name, size in (('128', (128, 128)), ('full', (width, height))):
        raw = arrays[f'raw_xywh_{name}']
        boxes = np.hstack([raw[:, :2], raw[:, :2] + raw[:, 2:]]).astype(np.int16)
        lists = dict(names=['1.jpg'], counts=np.array([len(raw)]), boxes=boxes)
        np.savez(tmp_path / f'{name}.npz', sizes=np.array([size]), **lists)
        found = ProposalTable.read(str(tmp_path / f'{name}.npz')).find('1.jpg').boxes
        expected = arrays['boxes_xyxy' if name == '128' else 'boxes_xyxy_full']
        pixels = found * [width, height, width, height]
        np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-5)
    number = int(arrays['max_prop'])
    load = LoadProposals(str(tmp_path / '128.npz'), max_num=number)
    proposals = torch.from_numpy(load.transform(dict(img_path='1.jpg'))['proposals'])
    top, left, h, w = arrays['crop_top_left_h_w']
    view = (1 - left / width, top / height, 1 - (left + w) / width, (top + h) / height)
    boxes = np.array([view] + [(0, 0, 1, 1)] * number)
    sample = DataSample(metainfo=dict(view_boxes=boxes))
    sample.set_field(proposals, 'proposals')
    targets = find_targets([sample], number)
    assert targets.crops == arrays['kept_after_crop'].tolist()
    assert targets.counts == [len(targets.crops)]
    close(targets.boxes, corners(torch.from_numpy(arrays['final_cxcywh'])), 1e-5)


def test_targets_take_their_own_crops():
    """Where a view shows nothing of a proposal, its crop is left out too; rows are view by view."""
    whole, right = (0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 1.0, 1.0)
    samples = []
    for view in (whole, right, (0.9, 0.9, 1.0, 1.0)):
        samples.append(DataSample(metainfo=dict(view_boxes=np.array([view] * 4))))
        boxes = torch.tensor([[0.0, 0.0, 0.4, 0.5], [0.25, 0.0, 0.75, 1.0], [0.6, 0.2, 0.8, 0.4]])
        samples[-1].set_field(boxes, 'proposals')
    targets = find_targets(samples, 3)
    assert (targets.counts, targets.crops) == ([3, 2, 0], [0, 3, 6, 4, 7])
    expected = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.6, 0.4]])
    torch.testing.assert_close(targets.boxes[3:], expected)
    model = tiny_model('DETReg').eval()
    crops = list(torch.randn(3, 3, 3, 32, 32))  # of three images each
    found = model.embed(crops, targets.crops)
    for row, crop in zip(found, (crops[0][0], crops[1][0], crops[2][0], crops[1][1], crops[2][1])):
        close(row, model.object_encoder(crop[None])[-1].mean(dim=(2, 3))[0], 1e-5)
    with pytest.raises(InputError, match='has 2 crops of every image, and an image with 3'):
        find_targets(samples, 2)
    with pytest.raises(InputError, match='carry no proposals'):
        find_targets([DataSample()], 2)


def test_batches_without_a_target():
    """Some images, or all: the authors' code raises an error in the second case."""
    for name in ('DETReg', 'DETRegOnDETR'):
        model, (views, samples) = tiny_model(name), joined_batch('DETReg', number=3)
        samples[0].set_field(torch.zeros(0, 4), 'proposals')
        losses = model(views, samples, mode='loss')
        assert all(torch.isfinite(value) for value in losses.values())
        for sample in samples:
            sample.set_field(torch.zeros(0, 4), 'proposals')
        losses = model(views, samples, mode='loss')
        assert losses['loss_embedding'] == losses['loss_bbox'] == 0 < losses['loss_cls']
        sum(losses.values()).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_views_of_the_pipeline():
    """Crops are of the image as loaded, black beyond the last proposal; the view knows its box."""
    image = np.random.RandomState(0).randint(0, 256, (200, 300, 3), np.uint8)
    boxes = np.array([[0.1, 0.2, 0.6, 0.7], [0.5, 0.5, 1.0, 1.0]], np.float32)
    cut = RandomSizeCrop(scale=400, size_range=(384, 600), prob=1.0)
    views = MultiView([[cut], [CropProposal(32, fewer=True)]], num_views=[1, 3])
    np.random.seed(0)
    results = views.transform(dict(img=image, img_shape=(200, 300), proposals=boxes))
    whole, first, second, missing = results['img']
    height, width = whole.shape[:2]
    assert 384 <= height <= 400 and 384 <= width <= 600
    x0, y0, x1, y1 = results['view_boxes'][0]
    assert (x1 - x0) * 600 == pytest.approx(width) and (y1 - y0) * 400 == pytest.approx(height)
    assert not missing.any() and missing.shape == (32, 32, 3)
    for view, (a, b, c, d) in zip((first, second), boxes):
        part = image[round(b * 200) : round(d * 200), round(a * 300) : round(c * 300)]
        assert abs(view.mean() - part.mean()) < 3
    shown = image[round(y0 * 200) : round(y1 * 200), round(x0 * 300) : round(x1 * 300)]
    assert abs(whole.mean() - shown.mean()) < 3
    # another image where the view shows too few, and where the image has too few
    with pytest.raises(Exception, match='its view shows 0 proposals, at least 2 are needed'):
        few = RandomSizeCrop(size_range=(20, 20), prob=1.0, min_proposals=2)
        few.transform(dict(img=image, img_path='a.jpg', proposals=boxes[:0]))
    with pytest.raises(Exception, match='it has 34 proposals, at least 40 are needed'):
        LoadProposals('grid', min_num=40).transform(dict(img_path='a.jpg'))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize('name', ['detreg', 'detreg_detr'])
def test_names_of_the_authors(golden, name):
    """At full size: every tensor, its shape, and back."""
    arrays = golden(f'{name}_checkpoint_keys')
    shapes = [tuple(map(int, s.split())) for s in arrays['shapes']]
    theirs = dict(zip(arrays['keys'].tolist(), shapes))
    ours = dict(zip(arrays['keys'].tolist(), arrays['mmdet_names'].tolist()))
    file = {key: torch.empty(shape, device='meta') for key, shape in theirs.items()}
    kept = {f'detector.{k}': v for k, v in file.items() if ours[k]}
    kept = {
        k.replace('detector.backbone.0.body.', 'detector.backbone.'): v for k, v in kept.items()
    }
    named = name_detr_layers(kept, coco_rows=False)
    expected = {f'detector.{name}': theirs[key] for key, name in ours.items() if name}
    assert {key: tuple(value.shape) for key, value in named.items()} == expected
    back = authors_detr_names({k[len('detector.') :]: v for k, v in named.items()})
    assert {k: tuple(v.shape) for k, v in back.items()} == {k: theirs[k] for k in ours if ours[k]}


def authors_file(name, path):
    """Write a file as the authors do, at full size: random numbers, their names."""
    with np.load(GOLDEN / f'{name}_checkpoint_keys.npz') as arrays:
        keys, shapes = arrays['keys'].tolist(), arrays['shapes'].tolist()
    torch.manual_seed(0)
    model = {}
    for key, shape in zip(keys, shapes):
        value = 0.02 * torch.randn(*map(int, shape.split()))
        shared = next((k for k in model if k[:5] == key[:5] and k[13:] == key[13:]), None)
        if key.startswith(('class_embed.', 'bbox_embed.')) and shared and name == 'detreg':
            value = model[shared]  # one tensor for all layers
        model[key] = value.abs() + 0.5 if key.endswith('running_var') else value
    torch.save(dict(model=model, epoch=4, args=Namespace(lr=2e-4)), path)
    return model


@pytest.mark.parametrize('name, number', [('detreg', 561), ('detreg_detr', 460)])
def test_files_of_the_authors(name, number, tmp_path, monkeypatch):
    """Into the algorithm, completely; into a detector, but for the class head; and back."""
    said = []
    monkeypatch.setattr(
        'mmdense.checkpoints.self_sup_pretrained.print_log', lambda text, **_: said.append(text)
    )
    path = tmp_path / 'authors.pth'
    authors = authors_file(name, path)
    found = recognise(read_checkpoint(str(path)))
    assert (found.source, found.algorithm_type) == ('DETReg', 'DETReg')
    assert found.license == 'CC BY-NC 4.0' and len(found.detector) == number
    short = dict(detreg='detreg_r50', detreg_detr='detreg_detr_r50')[name]
    config = Config.fromfile(str(REPO / f'configs/_base_/models/{short}.py')).model
    model = MODELS.build(dict(config, init_cfg=None))
    SelfSupPretrained(str(path))(model)
    assert torch.equal(
        model.object_encoder.layer2[0].conv2.weight, model.backbone.layer2[0].conv2.weight
    )
    assert torch.equal(
        model.feature_embed.layers[1].weight, authors['feature_embed.layers.1.weight']
    )
    state = model.detector.state_dict()
    del model

    detector = copy.deepcopy(config.detector.to_dict())
    detector['neck']['in_channels'] = [512, 1024, 2048] if name == 'detreg' else [2048]
    detector['bbox_head']['num_classes'] = 3
    detector['backbone'] = dict(
        type='ResNet', depth=50, out_indices=(1, 2, 3) if name == 'detreg' else (3,)
    )
    fill = dict(type='mmdense.SelfSupPretrained', checkpoint=str(path), part='detector')
    with DefaultScope.overwrite_default_scope('mmdet'):
        tuned = MODELS.build(dict(copy.deepcopy(detector), init_cfg=fill))
    tuned.init_weights()
    heads = ('bbox_head.fc_cls.', 'bbox_head.cls_branches.')
    for key, value in tuned.state_dict().items():
        if not key.startswith(heads):
            assert torch.equal(value, state[key]), key
    if name == 'detreg':
        assert 'begin anew: bbox_head.cls_branches' in said[-1]
        for branch in tuned.bbox_head.cls_branches:  # an object in a hundredth of the queries
            torch.testing.assert_close(branch.bias.sigmoid(), torch.full((3,), 0.01))
    else:
        assert '; 1 layers begin anew: bbox_head.fc_cls' in said[-1]
    del tuned

    for target in ('mmdet', 'detr'):
        convert_detector(str(path), str(tmp_path / f'{target}.pth'), target)
    again = read_checkpoint(str(tmp_path / 'detr.pth'))['model']
    assert len(again) == number
    assert all(torch.equal(value, authors[key]) for key, value in again.items())
    assert (
        read_checkpoint(str(tmp_path / 'mmdet.pth'))['state_dict'].keys() == found.detector.keys()
    )


def test_transfer_config(tmp_path, monkeypatch):
    """The checkpoint alone fills it, whatever weights mmdet's config names for the backbone."""
    path = tmp_path / 'authors.pth'
    authors_file('detreg', path)
    monkeypatch.setenv('CHECKPOINT', str(path))
    config = Config.fromfile(str(REPO / 'configs/transfer/mmdet/deformable-detr_r50_bccd.py')).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config)
        detector.init_weights()
    state = detector.state_dict()
    for name, value in recognise(read_checkpoint(str(path))).detector.items():
        assert name.startswith('bbox_head.cls_branches.') or torch.equal(state[name], value), name
    assert detector.bbox_head.cls_branches[0].out_features == 3
    trained = {n.split('.')[0] for n, p in detector.backbone.named_parameters() if p.requires_grad}
    assert trained == {'layer2', 'layer3', 'layer4'}


def test_wrong_detectors_are_refused(tmp_path):
    source = build(deformable())
    path = tmp_path / 'detreg.pth'
    save_backbone(source.state_dict(), str(path), product='detector', algorithm='DETReg')
    small = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    fill = dict(type='mmdense.SelfSupPretrained', checkpoint=str(path), part='detector')

    def detector(config, **changes):
        config = dict(config, backbone=small, init_cfg=fill, **changes)
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(config)

    plain = deformable(channels=[64])
    plain['neck']['bias'] = 'auto'
    for config, changes, reason in (
        (detr(channels=[64]), {}, "holds another detector: set type='mmdense.DeformableDETR'"),
        (plain, {}, "Set bias=True of the detector's neck"),
        (deformable(channels=[64]), dict(type='DeformableDETR'), "set type='mmdense.Deform"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            detector(config, **changes).init_weights()
    filled = detector(deformable(channels=[64], classes=2))
    filled.init_weights()
    for key, value in filled.state_dict().items():
        if not key.startswith('bbox_head.cls_branches.'):
            assert torch.equal(value, source.detector.state_dict()[key]), key


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize('name', ['DETReg', 'DETRegOnDETR'])
def test_both_networks_are_frozen(name):
    model = tiny_model(name, norm=dict(type='BN'))
    before = copy.deepcopy(model.state_dict())
    views, samples = joined_batch('DETReg')
    sum(model.train()(views, samples, mode='loss').values()).backward()
    for key, value in model.state_dict().items():
        if key.startswith(('detector.backbone.', 'object_encoder.')):
            assert torch.equal(value, before[key]), key
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(n.startswith(('detector.backbone.', 'object_encoder.')) for n in trained)
    assert {n.split('.')[0] for n in trained} == {'detector', 'feature_embed'}


def test_both_networks_start_from_one_file(tmp_path):
    """init_weights() fills them; building reads no file."""
    config = tiny_model_config('DETReg')
    source = MODELS.build(dict(config['backbone']))
    path = tmp_path / 'backbone.pth'
    config = dict(config, pretrained=str(path))
    model = MODELS.build(config)
    save_backbone(source.state_dict(), str(path))
    model.init_weights()
    for key, value in model.object_encoder.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert not hasattr(model.object_encoder, 'layer3')


def test_arguments_are_checked():
    with pytest.raises(InputError, match='label=4 must be a class of the head, 0…3'):
        MODELS.build(dict(tiny_model_config('DETReg'), label=4))
    model, (views, samples) = tiny_model('DETReg'), joined_batch('DETReg', number=2)
    for sample in samples:
        sample.set_metainfo(dict(view_boxes=sample.view_boxes[:2]))
    with pytest.raises(InputError, match='view_boxes must be 31×4'):
        model(views, samples, mode='loss')


def test_without_operators_on_a_gpu_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr('mmdense.models.detectors.has_operators', lambda: False)
    with pytest.raises(InputError, match='^DeformableDETR needs mmcv with compiled operators'):
        tiny_model('DETReg')
    tiny_model('DETRegOnDETR')


def test_the_planner_says_what_is_taken():
    facts = RunFacts(images=500, batch=32, steps=100, recipe=None)
    weights, proposals = DETReg.small_data_rules(facts)
    assert (weights.name, weights.value, proposals.value) == ('backbone weights', 'random', 'grid')
    assert '--init FILE' in weights.reason and 'selective search' in proposals.reason
    assert DETReg.small_data_rules(facts._replace(init='x.pth')) == [proposals]


RECIPES = {
    'resnet50_8xb24-constantlr-5e_in1k': (5, 2e-4, None),
    'resnet50_8xb24-steplr-50e_coco': (50, 2e-4, 4 / 5),
    'resnet50_8xb24-steplr-50e_in100': (50, 2e-4, 4 / 5),
    'detr-resnet50_8xb24-constantlr-60e_in1k': (60, 1e-4, None),
    'detr-resnet50_8xb24-constantlr-300e_coco': (300, 1e-4, None),
}


@pytest.mark.parametrize('name', RECIPES)
def test_recipes(name):
    """Those of the authors' repository, but for a DETR on COCO."""
    kind = 'detreg_detr-' if name.startswith('detr-') else 'detreg_'
    recipe = load_recipe(f'configs/detreg/{kind}{name.replace("detr-", "")}.py')
    epochs, lr, share = RECIPES[name]
    wrapper = recipe.optim_wrapper
    assert wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    assert wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert recipe.train_cfg.max_epochs == epochs and recipe.train_dataloader.batch_size == 24
    schedules = recipe.get('param_scheduler', [])
    assert [s.shares for s in schedules] == ([] if share is None else [[share]])
    _, load, views, _ = recipe.train_dataloader.dataset.pipeline
    assert (load.max_num, load.min_num, views.num_views) == (30, 2, [1, 30])
    (cut, resize, flip), (crop, jitter, grey, blur) = views.transforms
    assert (cut.scale, cut.size_range, cut.prob) == ([400, 500, 600], (384, 600), 0.5)
    assert resize.scale == [side for side in range(320, 481, 16) if side != 384]
    assert (resize.max_size, flip.prob, crop.scale, crop.fewer) == (600, 0.5, 128, True)
    assert [jitter[k] for k in ('brightness', 'contrast', 'saturation', 'hue')] == [0.4] * 3 + [0.1]
    assert (jitter.prob, grey.prob, blur.prob, blur.sigma) == (0.8, 0.2, 0.5, (0.1, 2.0))
    detector = recipe.model.detector
    deformable = not name.startswith('detr-')
    assert detector.num_queries == (300 if deformable else 100)
    assert detector.bbox_head.num_classes == 91 and recipe.model.label == 1
    assert detector.positional_encoding.offset == -0.5 and detector.positional_encoding.normalize
    places = wrapper.get('paramwise_cfg') or dict(custom_keys={})
    assert {k: v['lr_mult'] for k, v in places['custom_keys'].items()} == (
        dict(sampling_offsets=0.1, reference_points=0.1) if deformable else {}
    )
    for part in (detector.encoder, detector.decoder):
        forward = part.layer_cfg.ffn_cfg
        assert part.num_layers == 6 and forward.ffn_drop == 0.1
        assert forward.feedforward_channels == (1024 if deformable else 2048)


# ---------------------------------------------------------------- mmdense show


@pytest.mark.parametrize('name', ['DETReg', 'DETRegOnDETR'])
def test_find(name):
    """Queries whose boxes are asked for are matched with them."""
    model = tiny_model(name).eval()
    images = torch.randn(2, 3, 96, 96)
    _, found, none = model.find(images, [torch.zeros(0, 4)] * 2)
    assert (none == -1).all()
    scores, again, match = model.find(images, [found[0, [5, 9]], found[1, [7]]])
    assert torch.equal(found, again) and scores.shape == (2, 40)
    assert ((scores > 0) & (scores < 1)).all()
    assert match[0, [5, 9]].tolist() == [0, 1] and match[1, 7] == 0
    assert (match >= 0).sum() == 3


def test_show_draws_proposals_over_training(images, tmp_path):
    cfg = load_recipe('configs/detreg_r50_coco.py')
    cfg.model = tiny_model_config('DETReg', dict(type='BN'))
    model = MODELS.build(cfg.model)
    paths = []
    for epoch in (1, 2):
        paths.append(str(tmp_path / f'epoch_{epoch}.pth'))
        meta = dict(cfg=cfg.pretty_text, mmdense=describe_product(model))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), paths[-1])
    sizes = []
    for given in (paths[:1], paths):
        files = show(given[0], [*given[1:], images], str(tmp_path / 'out'), number=2, size=128)
        (picture,) = [name for name in files if name.endswith('objects.png')]
        sizes.append(Image.open(picture).size)
    assert sizes[1][0] > sizes[0][0] > 300 and sizes[1][1] == sizes[0][1]
    html = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    assert 'Proposals and matched queries' in html and 'But for the proposals, each' in html
