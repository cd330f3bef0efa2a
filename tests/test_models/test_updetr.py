# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test UP-DETR against the authors' code: attention mask, queries, network, matching and losses."""

import copy
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
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
from mmdense.models import UPDETR, Views
from mmdense.models.selfsup.base import RunFacts
from mmdense.models.selfsup.detector import image_sizes
from mmdense.models.selfsup.updetr import block_mask
from mmdense.models.utils.authors_names import authors_detr_names, name_detr_layers
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError
from mmdense.visualization.found_patches import box_overlap, find_patches, paint_found

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    return Tiny(
        algorithm='UPDETR',
        family='detector',
        parts=lambda norm: dict(detector=tiny_detector()),
        product='detector',
        health_rows=2,  # which pairs are of the last layer
        fix=draw_by_embedding,
        recipe='updetr_r50_coco',
        options=[
            'model.detector.num_queries=20',
            'model.detector.encoder.num_layers=1',
            'model.detector.decoder.num_layers=2',
            'model.detector.encoder.layer_cfg.ffn_cfg.feedforward_channels=64',
            'model.detector.decoder.layer_cfg.ffn_cfg.feedforward_channels=64',
            'train_dataloader.dataset.pipeline.2.transforms.1.0.scale=32',
        ],
        health=health_names(global_=PAIRS),
        losses=['loss_cls', 'loss_bbox', 'loss_iou', 'loss_feature'],
        probed='feature_align',
        collapses=False,
        multi_view=2,
        passes=2,
        proposals=lambda image: 10,
        # the number of matches in each of two layers, and of patches
        calls=lambda image, patches, seen: [('all_reduce', 4)] * 3,
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
    """Drop the patches of queries by what the patches look like, the same in every process, and let
    the queries of a new detector find different boxes: if all find one box, every match is as good.
    """
    with torch.no_grad():
        model.detector.query_embedding.weight *= 3
        model.detector.bbox_head.fc_reg.weight *= 2

    def draw(queries):
        return (queries.sum(2) * 5).sin().abs()

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
    kept = {
        k.replace('detector.backbone.0.body.', 'detector.backbone.'): v for k, v in kept.items()
    }
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


# ---------------------------------------------------------------- files


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file as the authors write it, at full size: random numbers, their names."""
    with np.load(GOLDEN / 'updetr_checkpoint_keys.npz') as arrays:
        keys, shapes = arrays['keys'].tolist(), arrays['shapes'].tolist()
    torch.manual_seed(0)
    model = {}
    for key, shape in zip(keys, shapes):
        value = 0.02 * torch.randn(*map(int, shape.split()))
        model[key] = value.abs() + 0.5 if key.endswith('running_var') else value
    path = tmp_path_factory.mktemp('authors') / 'up-detr.pth'
    torch.save(dict(model=model, epoch=59, args=Namespace(lr=1e-4)), path)
    return path


def full_detector(kind='mmdense.PreNormDETR', classes=3, **changes):
    """Build a detector for fine-tuning, with its transformer at full size."""
    config = Config.fromfile(str(REPO / 'configs/_base_/models/updetr_r50.py')).model.detector
    config.update(type=kind, **changes)
    config.bbox_head.num_classes = classes
    config.neck.in_channels = [2048]
    config.backbone = dict(
        type='ResNet',
        depth=50,
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def fill(path):
    return dict(type='mmdense.SelfSupPretrained', checkpoint=str(path), part='detector')


def test_detector_from_the_authors_file(published, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmdense.checkpoints.self_sup_pretrained.print_log', lambda text, **_: said.append(text)
    )
    found = recognise(read_checkpoint(str(published)))
    assert (found.source, found.algorithm_type) == ('UP-DETR', 'UPDETR')
    assert found.license == 'CC BY-NC 4.0'
    detector = full_detector(init_cfg=fill(published))
    head = {k: v.clone() for k, v in detector.bbox_head.fc_cls.state_dict().items()}
    detector.init_weights()
    state = detector.state_dict()
    file = found.detector
    names = {k for k in state if not k.endswith('num_batches_tracked')}
    assert names == file.keys()
    for name in names:
        if name.startswith('bbox_head.fc_cls.'):
            assert torch.equal(state[name], head[name.rpartition('.')[2]])
        else:
            assert torch.equal(state[name], file[name]), name
    assert '; 1 layers begin anew: bbox_head.fc_cls' in said[0]

    # the backbone alone, into a backbone of any detector
    backbone = full_detector().backbone
    backbone.init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=str(published))
    backbone.init_weights()
    assert torch.equal(backbone.layer4[2].conv3.weight, state['backbone.layer4.2.conv3.weight'])

    # and back
    for target in ('mmdet', 'detr'):
        line = convert_detector(str(published), str(tmp_path / f'{target}.pth'), target)
        assert f'460 tensors of the detector written by UP-DETR, in the names of {target}' in line
    ours, theirs, again = (
        read_checkpoint(str(path))
        for path in (tmp_path / 'mmdet.pth', published, tmp_path / 'detr.pth')
    )
    assert ours['state_dict'].keys() == file.keys()
    assert len(again['model']) == 460
    for name, value in again['model'].items():
        assert torch.equal(value, theirs['model'][name]), name
    other = full_detector(init_cfg=fill(tmp_path / 'mmdet.pth'))
    other.init_weights()
    assert torch.equal(other.query_embedding.weight, state['query_embedding.weight'])


def test_wrong_detectors_are_refused(published):
    for kind, reason in (
        ('mmdet.DETR', 'is pre-norm: set type=.mmdense.PreNormDETR'),
        ('mmdense.DETR', 'is pre-norm: set type=.mmdense.PreNormDETR'),
    ):
        detector = full_detector(kind, init_cfg=fill(published))
        before = detector.query_embedding.weight.clone()
        with pytest.raises(CheckpointError, match=reason):
            detector.init_weights()
        assert torch.equal(detector.query_embedding.weight, before)
    detector = full_detector(num_queries=50, init_cfg=fill(published))
    with pytest.raises(CheckpointError, match='query_embedding.weight .100×256 in the file'):
        detector.init_weights()
    with pytest.raises(InputError, match="part must be 'backbone' or 'detector', got 'head'"):
        SelfSupPretrained('x.pth', part='head')


def test_post_norm_file(tmp_path):
    """mmdet's class would initialize the transformer after it is filled."""
    source = build(64, 20, 10, pre_norm=False)
    path = tmp_path / 'post.pth'
    save_backbone(source.state_dict(), str(path), product='detector', algorithm='UPDETR')

    def detector(kind):
        config = tiny_detector(channels=64, pre_norm=False)
        config['bbox_head']['num_classes'] = 5
        small = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(dict(config, type=kind, backbone=small, init_cfg=fill(path)))

    for kind, reason in (
        ('mmdet.DETR', "again after it is filled: set type='mmdense.DETR'"),
        ('mmdense.PreNormDETR', "is post-norm: set type='mmdense.DETR'"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            detector(kind).init_weights()
    filled = detector('mmdense.DETR')
    filled.init_weights()
    for name, value in filled.state_dict().items():
        if not name.startswith('bbox_head.fc_cls.'):
            assert torch.equal(value, source.detector.state_dict()[name]), name


def test_transfer_config(published, monkeypatch):
    """The checkpoint alone fills it, whatever weights mmdet's config names for the backbone."""
    monkeypatch.setenv('CHECKPOINT', str(published))
    path = REPO / 'configs/transfer/mmdet/detr_r50_pre-norm_bccd.py'
    config = Config.fromfile(str(path)).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config)
        detector.init_weights()
    file = recognise(read_checkpoint(str(published))).detector
    state = detector.state_dict()
    for name, value in file.items():
        assert name.startswith('bbox_head.fc_cls.') or torch.equal(state[name], value), name
    assert detector.bbox_head.fc_cls.out_features == 4
    trained = {n.split('.')[0] for n, p in detector.backbone.named_parameters() if p.requires_grad}
    assert trained == {'layer2', 'layer3', 'layer4'}


# ---------------------------------------------------------------- the contract


def test_the_backbone_is_frozen():
    model = tiny_model('UPDETR', norm=dict(type='BN'))
    before = copy.deepcopy(model.backbone.state_dict())
    views, samples = joined_batch('UPDETR')
    losses = model.train()(views, samples, mode='loss')
    sum(losses.values()).backward()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n.split('.')[0] for n in trained} == {'detector', 'patch2query', 'feature_align'}


def test_padding_changes_nothing():
    """The same predictions of an image alone, and of one padded to the largest of its batch."""
    model = tiny_model('UPDETR').eval()
    with torch.no_grad():  # boxes that differ more
        model.detector.query_embedding.weight *= 3
        model.detector.bbox_head.fc_reg.weight *= 2
    maps = nn.Conv2d(3, 64, 32, 32)  # where each location sees its own pixels alone
    model.frozen_maps = lambda images: (maps(images),)
    views, samples = joined_batch('UPDETR', number=2)
    alone = [views[0][:1, :, :64], *(view[:1] for view in views[1:])]
    views[0][0, :, 64:] = 100
    found = []
    model.detector.bbox_head.register_forward_hook(lambda *args: found.append(args[2][1]))
    model(alone, samples[:1], mode='loss')
    model(views, samples, mode='loss')
    samples[0].set_metainfo(dict(view_shapes=[(64, 96)]))
    samples[1].set_metainfo(dict(view_shapes=[(96, 96)]))
    model(views, samples, mode='loss')
    assert (found[1][:, :1] - found[0]).abs().max() > 0.1
    close(found[2][:, :1], found[0], 1e-5)
    close(found[2][:, 1:], found[1][:, 1:], 1e-5)


def test_arguments_are_checked():
    with pytest.raises(InputError, match='num_queries=20 must be a multiple of num_patches=3'):
        build(64, 20, 3)
    with pytest.raises(InputError, match='needs one backbone'):
        MODELS.build(dict(type='UPDETR', detector=tiny_detector()))
    views, samples = joined_batch('UPDETR', number=2)
    for sample in samples:
        sample.set_field(sample.proposals[:9], 'proposals')
    with pytest.raises(InputError, match='as many proposals of every image as patches, 10, got 9'):
        tiny_model('UPDETR')(views, samples, mode='loss')


def test_the_planner_says_that_the_backbone_is_frozen():
    facts = RunFacts(images=500, batch=32, steps=100, recipe=None)
    (row,) = UPDETR.small_data_rules(facts)
    assert (row.name, row.value, row.config) == ('backbone weights', 'random', {})
    assert '--init FILE' in row.reason
    assert UPDETR.small_data_rules(facts._replace(init='x.pth')) == []


def test_without_mmdet_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.models', None)
    with pytest.raises(InputError, match='UPDETR needs mmdet, which cannot be imported'):
        build(64, 20, 10)


def test_shuffled_queries():
    model = build(64, 20, 10)
    features = torch.zeros(2, 10, 64)
    model.train()
    model.shuffle_queries, model.draw = True, lambda queries: torch.ones(queries.shape[:2])
    shuffled = model.query_positions(features)[0] - model.patch2query.bias
    embedding = model.detector.query_embedding.weight
    assert not torch.allclose(shuffled, embedding)
    order = torch.cdist(shuffled, embedding).argmin(1)
    assert order.sort().values.tolist() == list(range(20))
    torch.testing.assert_close(shuffled, embedding[order])
    model.eval()
    torch.testing.assert_close(
        model.query_positions(features)[0], embedding + model.patch2query.bias
    )


@pytest.mark.parametrize('name, epochs', [('60e_in1k', 60), ('300e_coco', 300)])
def test_recipes(name, epochs):
    """Those of the authors' repository, but for the length on COCO."""
    recipe = load_recipe(f'configs/updetr/updetr_resnet50_8xb32-steplr-{name}.py')
    wrapper = recipe.optim_wrapper
    assert wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert wrapper.clip_grad == dict(max_norm=0.1, norm_type=2) and 'paramwise_cfg' not in wrapper
    (schedule,) = recipe.param_scheduler
    assert (schedule.shares, schedule.gamma) == ([2 / 3], 0.1)  # after 40 of 60 epochs
    assert recipe.train_cfg.max_epochs == epochs and recipe.train_dataloader.batch_size == 32
    _, load, views, _ = recipe.train_dataloader.dataset.pipeline
    assert (load.source, load.max_num, views.num_views) == ('random', 10, [1, 10])
    (image,), (patch, jitter, grey, blur) = views.transforms
    assert image.scale == [side for side in range(320, 481, 16) if side != 384]
    assert image.max_size == 600 and patch.scale == 128
    assert [jitter[k] for k in ('brightness', 'contrast', 'saturation', 'hue')] == [0.4] * 3 + [0.1]
    assert (jitter.prob, grey.prob, blur.prob, blur.sigma) == (0.8, 0.2, 0.5, (0.1, 2.0))
    detector = recipe.model.detector
    assert (detector.num_queries, recipe.model.num_patches, recipe.model.mask_ratio) == (
        100,
        10,
        0.1,
    )
    for part in (detector.encoder, detector.decoder):
        attention, forward = part.layer_cfg.self_attn_cfg, part.layer_cfg.ffn_cfg
        assert (part.num_layers, attention.num_heads, attention.embed_dims) == (6, 8, 256)
        assert (attention.dropout, forward.ffn_drop, forward.feedforward_channels) == (
            0.1,
            0.1,
            2048,
        )
    assert detector.type == 'mmdense.PreNormDETR' and detector.positional_encoding.normalize


# ---------------------------------------------------------------- mmdense show


def test_find():
    model = tiny_model('UPDETR').eval()
    views, samples = joined_batch('UPDETR', number=2)
    scores, boxes = model.find(views[0], views[1:4])
    assert scores.shape == (2, 3, 2) and boxes.shape == (2, 3, 2, 4)
    outputs = []
    model.detector.bbox_head.register_forward_hook(lambda *args: outputs.append(args[2]))
    model(views, samples, mode='loss')
    logits, found = (out[-1, :, :6].unflatten(1, (3, 2)) for out in outputs[0])
    # queries of one patch do not see those of another: the other seven change nothing
    close(scores, logits.softmax(-1)[..., 1], 1e-5)
    close((boxes[..., 2:] - boxes[..., :2]), found[..., 2:], 1e-5)
    close((boxes[..., 2:] + boxes[..., :2]) / 2, found[..., :2], 1e-5)


def test_picture_of_found_patches():
    """By a model whose first query finds each patch, and whose second one nothing."""
    seen = []

    class Finder:
        views = Views(groups=(1, 3))

        def find(self, images, patches):
            seen.append((images, patches))
            corner = torch.tensor([0.0, 0.0, 0.1, 0.1])
            boxes = torch.stack([torch.stack([torch.ones(4), corner])] * 3)[None]
            return torch.tensor([[[0.2, 0.9]] * 3]), boxes

    image = np.random.RandomState(0).randint(0, 256, (60, 90, 3), np.uint8)
    preprocessor = lambda data: dict(inputs=data['inputs'].float())  # noqa: E731
    (one,) = find_patches(Finder(), preprocessor, [image])
    assert seen[0][0].shape == (1, 3, 60, 90)
    assert [tuple(patch.shape) for patch in seen[0][1]] == [(1, 3, 128, 128)] * 3
    for patch, (x0, y0, x1, y1) in zip(one.patches, one.boxes * [90, 60, 90, 60]):
        x0, y0, x1, y1 = map(round, (x0, y0, x1, y1))
        assert min(x1 - x0, y1 - y0) >= 10
        assert abs(patch.mean() - image[y0:y1, x0:x1].mean()) < 3
    painted = paint_found(image, one, 0)
    assert tuple(painted[6, 9]) == tuple(painted[3, 9]) == (255, 200, 0)  # the best query
    one.found[0, 1] = one.boxes[0]
    assert box_overlap(one, 0) == pytest.approx(1) and box_overlap(one, 1) < 0.5


def test_show_draws_found_patches(images, tmp_path):
    cfg = load_recipe('configs/updetr_r50_coco.py')
    cfg.model = tiny_model_config('UPDETR', dict(type='BN'))
    model = MODELS.build(cfg.model)
    path = str(tmp_path / 'epoch_1.pth')
    meta = dict(cfg=cfg.pretty_text, mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    files = show(path, [images], str(tmp_path / 'out'), number=2, size=128)
    (picture,) = [name for name in files if name.endswith('patches.png')]
    assert min(Image.open(picture).size) > 300
    html = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    assert 'Where patches are found' in html and 'But for the found patches, each' in html
