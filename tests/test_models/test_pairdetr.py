# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Test Pair DETR: Conditional DETR's published network and losses, and what is added to it."""

import json
import re
import sys
import uuid
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image
from recipes import load_recipe
from tiny_algorithms import (
    PAIRS,
    Tiny,
    health_names,
    joined_batch,
    tiny_model,
    tiny_model_config,
)

from mmdense.apis.planning.methods import find_method
from mmdense.checkpoints import convert_detector, read_checkpoint, recognise
from mmdense.cli import main
from mmdense.datasets import ResumableSampler, SeededDataset
from mmdense.models import PairDETR, registered_algorithms
from mmdense.models.losses import pair_contrast
from mmdense.models.selfsup.detector import image_sizes
from mmdense.models.utils.authors_names import authors_detr_names, name_detr_layers
from mmdense.registry import MODELS
from mmdense.utils import model_index
from mmdense.utils.errors import CheckpointError, InputError

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
        options=[],  # its runs are in this file: it needs boxes
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
            sync_cls_avg_factor=True,
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
    as good. Gradients reach all layers where the last one is not 0.

    Parameters that change nothing are left out, whose gradient is rounding and nothing to compare:
    biases of keys, which add one number to all logits of a softmax; and in the first layers the
    weights of self-attention, since content queries are 0 and all values equal.
    """
    for decoder in (model.detector.decoder, model.corner_decoder):
        for name, parameter in decoder.named_parameters():
            first = name.startswith('layers.0.self_attn') and name.split('.')[3][0] in 'qk'
            if first or name.endswith(('kcontent_proj.bias', 'kpos_proj.bias')):
                parameter.requires_grad_(False)
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


# ---------------------------------------------------------------- files


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A file as the authors of Conditional DETR write it, at full size: random numbers, their
    names."""
    with np.load(GOLDEN / 'conditional_detr_checkpoint_keys.npz') as arrays:
        keys, shapes = arrays['keys'].tolist(), arrays['shapes'].tolist()
    torch.manual_seed(0)
    model = {}
    for key, shape in zip(keys, shapes):
        value = 0.02 * torch.randn(*map(int, shape.split()))
        model[key] = value.abs() + 0.5 if key.endswith('running_var') else value
    path = tmp_path_factory.mktemp('authors') / 'conditional-detr.pth'
    torch.save(dict(model=model, epoch=49, args=Namespace(lr=1e-4)), path)
    return path


def full_detector(kind, path=None, classes=3):
    """Build a detector at full size."""
    recipe = load_recipe('configs/pairdetr_r50_coco.py').model
    config, backbone = recipe.detector, recipe.backbone
    config.bbox_head.num_classes = classes
    config.neck.in_channels = [2048]
    del backbone.init_cfg
    if kind == 'mmdense.PreNormDETR':
        config = load_recipe('configs/updetr_r50_coco.py').model.detector
        config.neck.in_channels = [2048]
    if path is not None:
        config.init_cfg = dict(
            type='mmdense.SelfSupPretrained', checkpoint=str(path), part='detector'
        )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(config, type=kind, backbone=backbone))


def test_files_of_the_authors(published, tmp_path):
    found = recognise(read_checkpoint(str(published)))
    assert (found.source, found.algorithm_type) == ('Conditional DETR', 'PairDETR')
    detector = full_detector('mmdense.ConditionalDETR', published)
    head = detector.bbox_head.fc_cls.weight.clone()
    detector.init_weights()
    state = detector.state_dict()
    assert {k for k in state if not k.endswith('num_batches_tracked')} == found.detector.keys()
    for name, value in found.detector.items():
        if not name.startswith('bbox_head.fc_cls.'):
            assert torch.equal(state[name], value), name
    assert torch.equal(state['bbox_head.fc_cls.weight'], head)
    assert torch.allclose(state['bbox_head.fc_cls.bias'].exp(), torch.tensor(1 / 99))

    for target in ('mmdet', 'detr'):
        line = convert_detector(str(published), str(tmp_path / f'{target}.pth'), target)
        assert '564 tensors of the detector written by Conditional DETR' in line
    # mmdet's own class takes all of it, class head included
    tensors = read_checkpoint(str(tmp_path / 'mmdet.pth'))['state_dict']
    stock = full_detector('mmdet.ConditionalDETR', classes=80)
    missing, unexpected = stock.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    again, file = (read_checkpoint(str(p))['model'] for p in (tmp_path / 'detr.pth', published))
    assert again.keys() == file.keys()
    for name, value in again.items():
        assert name.startswith('class_embed.') or torch.equal(value, file[name]), name


def test_wrong_detectors_are_refused(published):
    for kind, reason in (
        ('mmdet.ConditionalDETR', "after it is filled: set type='mmdense.ConditionalDETR'"),
        ('mmdense.PreNormDETR', "holds another detector: set type='mmdense.ConditionalDETR'"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            full_detector(kind, published).init_weights()
    config = tiny_model_config('PairDETR')
    other = load_recipe('configs/updetr_r50_coco.py').model.detector
    with pytest.raises(InputError, match='PairDETR needs a Conditional DETR, got PreNormDETR'):
        MODELS.build(dict(config, detector=other))
    for wrong in (dict(temperature=0), dict(contrastive_weight=-1)):
        with pytest.raises(InputError, match=next(iter(wrong))):
            MODELS.build(dict(config, **wrong))


def test_it_starts_from_a_file_of_the_authors(published):
    """Both decoders begin as theirs, and the boxes of both."""
    config = load_recipe('configs/pairdetr_r50_coco.py').model
    del config.backbone.init_cfg
    fill = dict(type='Pretrained', _scope_='mmdense', checkpoint=str(published))
    model = MODELS.build(dict(config, init_cfg=fill))
    model.init_weights()
    state = model.state_dict()
    for name, value in recognise(read_checkpoint(str(published))).detector.items():
        assert torch.equal(state[f'detector.{name}'], value), name
        if name.startswith('decoder.'):
            assert torch.equal(state[f'corner_{name}'], value), name
    head = model.detector.bbox_head
    for layer, other in zip(
        model.corner_embed.layers, (head.reg_ffn.layers[0][0], head.reg_ffn.layers[1], head.fc_reg)
    ):
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


# ---------------------------------------------------------------- the contract


def test_it_declares_that_it_needs_boxes(tmp_path, capsys):
    """The one declaration: what has no method for a folder of images, and which class says so."""
    recipes = {entry['In Collection']: entry['Config'] for entry in model_index.entries()}
    kinds = {kind.__name__: kind for kind in registered_algorithms()}
    for entry in model_index.collections():
        kind = kinds[load_recipe(recipes[entry['Name']]).model.type]
        assert kind.needs_labels == ('Method' not in entry), entry['Name']
    with pytest.raises(InputError, match='method pairdetr: PairDETR needs labelled boxes, not a'):
        find_method('pairdetr')
    with pytest.raises(SystemExit):
        main(['plan', str(tmp_path), '--method', 'pairdetr'])
    assert 'PairDETR needs labelled boxes, not a folder of images' in capsys.readouterr().err
    views, samples = joined_batch('PairDETR', number=2)
    for sample in samples:
        sample.pop('gt_instances')
    with pytest.raises(InputError, match='PairDETR needs labelled boxes, gt_instances of every'):
        tiny_model('PairDETR')(views, samples, mode='loss')


def test_initial_weights():
    """Boxes of both decoders begin at their references; the second one has Xavier's range too."""
    model = tiny_model('PairDETR')
    model.init_weights()
    for last in (model.detector.bbox_head.fc_reg, model.corner_embed.layers[-1]):
        assert not last.weight.any() and not last.bias.any()
    for decoder in (model.detector.decoder, model.corner_decoder):
        weight = decoder.layers[1].cross_attn.qcontent_proj.weight
        assert weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=0.01)
    a, b = (
        m.layers[0].ffn.layers[1].weight for m in (model.detector.decoder, model.corner_decoder)
    )
    assert not torch.equal(a, b)
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert 'conv1.weight' in trained and model.train().backbone.training


def test_without_objects():
    """All queries are background, and every trained parameter has a gradient."""
    model, (views, samples) = tiny_model('PairDETR'), joined_batch('PairDETR', number=2)
    for sample in samples:
        empty = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample.set_field(empty, 'gt_instances')
    losses = model(views, samples, mode='loss')
    for name, value in losses.items():
        assert (value > 0) == (name in ('loss_cls', 'loss_contrastive')), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_without_mmdet_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.models', None)
    with pytest.raises(InputError, match='PairDETR needs mmdet, which cannot be imported'):
        build()


def test_no_compiled_operator_is_called(monkeypatch):
    """mmdet's focal loss calls one where the tensors are on a GPU."""
    from mmdet.models.losses import focal_loss

    def operator(*args, **kwargs):
        raise AssertionError('sigmoid_focal_loss')

    model, (views, samples) = tiny_model('PairDETR'), joined_batch('PairDETR', number=2)
    expected = model(views, samples, mode='loss')['loss_cls']
    loss = model.detector.bbox_head.loss_cls
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 3])
    close(loss(logits, labels), super(type(loss), loss).forward(logits, labels), 1e-6)
    monkeypatch.setattr(focal_loss, 'sigmoid_focal_loss', operator)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda _: True))
    with pytest.raises(AssertionError, match='sigmoid_focal_loss'):
        super(type(loss), loss).forward(logits, labels)
    monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda _: False))
    close(model(views, samples, mode='loss')['loss_cls'], expected, 0)


def test_recipe():
    """Conditional DETR's published setting of 50 epochs."""
    recipe = load_recipe('configs/pairdetr_r50_coco.py')
    wrapper = recipe.optim_wrapper
    assert wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert wrapper.paramwise_cfg.custom_keys == dict(backbone=dict(lr_mult=0.1))
    (schedule,) = recipe.param_scheduler
    assert (schedule.shares, schedule.gamma, recipe.train_cfg.max_epochs) == ([0.8], 0.1, 50)
    assert recipe.train_dataloader.batch_size == 2
    # but for what the authors have and mmdet has not, mmdet's own detector and views
    base = "_base_ = 'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'"
    mmdets = Config.fromstring(base, '.py')
    ours = recipe.model.detector.to_dict()
    for part in ('self_attn_cfg', 'cross_attn_cfg'):
        assert ours['decoder']['layer_cfg'][part].pop('proj_drop') == 0.1
    assert ours['bbox_head'].pop('sync_cls_avg_factor') is True
    theirs = without_scope(mmdets.model.to_dict())
    for key in ('encoder', 'decoder', 'positional_encoding', 'bbox_head', 'train_cfg', 'test_cfg'):
        assert without_scope(ours[key]) == theirs[key], key
    for key in ('frozen_stages', 'norm_eval', 'norm_cfg', 'init_cfg', 'out_indices'):
        wanted = without_scope(mmdets.model.backbone[key])
        assert without_scope(recipe.model.backbone[key]) == wanted, key
    found = without_scope(recipe.train_dataloader.dataset.dataset.pipeline)
    wanted = without_scope(mmdets.train_dataloader.dataset.pipeline)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(wanted))


def without_scope(node):
    """Return a config's part without the ways to name packages."""
    if isinstance(node, dict):
        kept = {k: v for k, v in node.items() if k not in ('_scope_', 'backend_args')}
        kept.pop('resize_type', None)
        return {k: without_scope(v) for k, v in kept.items()}
    if isinstance(node, (list, tuple)):
        return [without_scope(x) for x in node]
    return node.rpartition('.')[2] if isinstance(node, str) else node


# ---------------------------------------------------------------- runs


@pytest.fixture
def coco(tmp_path):
    """Eight images with up to three rectangles, in COCO's format."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(8):
        pixels = rng.integers(0, 90, (96, 120, 3), dtype=np.uint8)
        images.append(dict(id=i, file_name=f'{i}.png', width=120, height=96))
        for j in range(1 + i % 3):
            x, y, w, h = 10 + 30 * j, 12 + 3 * i, 20 + 2 * i, 18 + 4 * j
            pixels[y : y + h, x : x + w, j] = 255
            box = dict(bbox=[x, y, w, h], area=w * h, category_id=j + 1, iscrowd=0)
            annotations.append(dict(box, id=len(annotations) + 1, image_id=i))
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(('person', 'bicycle', 'car'))]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def train(coco, tmp_path):
    """The recipe in this process, tiny: two epochs of four steps, a checkpoint every two."""

    def call(name='whole', resume=None, **options):
        cfg = load_recipe('configs/pairdetr_r50_coco.py')
        cfg.model = tiny_model_config(
            'PairDETR', dict(type='BN'), data_preprocessor=cfg.model.data_preprocessor
        )
        resize = dict(
            type='mmdet.RandomChoiceResize',
            resize_type='mmdet.Resize',
            scales=[(64, 200), (80, 200)],
            keep_ratio=True,
        )
        load, boxes, flip, *_, pack = cfg.train_pipeline
        cfg.train_dataloader.dataset.dataset.pipeline = [load, boxes, flip, resize, pack]
        cfg.val_dataloader.dataset.pipeline[1].scale = (200, 64)
        for loader in (cfg.train_dataloader.dataset, cfg.val_dataloader):
            loader.dataset.update(
                data_root=str(coco),
                ann_file='boxes.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=('person', 'bicycle', 'car')),
            )
        cfg.val_evaluator.ann_file = str(coco / 'boxes.json')
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
        cfg.default_hooks.checkpoint.update(interval=2, by_epoch=False, max_keep_ckpts=-1)
        cfg.default_hooks.logger.interval = 1
        cfg.default_hooks.health.interval = 4
        cfg.train_cfg.max_epochs = 2
        cfg.update(
            work_dir=str(tmp_path / name),
            experiment_name=uuid.uuid4().hex,
            load_from=resume and str(resume),
            resume=resume is not None,
            randomness=dict(seed=1),
        )
        cfg.merge_from_dict({k: DictAction._parse_iterable(str(v)) for k, v in options.items()})
        runner = Runner.from_cfg(cfg)
        runner.train()
        call.log = next((tmp_path / name).glob('*/*.log')).read_text()
        call.model = runner.model
        return lambda i: torch.load(call.path(name, i), weights_only=False)

    call.path = lambda name, i: tmp_path / name / f'iter_{i}.pth'
    return call


def test_a_run(train, tmp_path):
    """It logs every loss and AP, and exports a plain Conditional DETR that finds the same."""
    checkpoint = train()(8)
    lines = re.findall(r'Epoch\(train\) .*', train.log)
    assert len(lines) == 8
    for name in tiny().losses:
        assert all(f'{name}: ' in line for line in lines), name
    assert 'health_global_positive_similarity: ' in lines[3]
    assert len(re.findall(r'coco/bbox_mAP: ', train.log)) == 2
    about = checkpoint['meta']['mmdense']
    assert (about['algorithm'], about['product']) == ('PairDETR', 'detector')
    exported = read_checkpoint(str(tmp_path / 'whole' / 'backbone.pth'))['state_dict']
    assert not any('corner' in name for name in exported)

    def stock(kind, **parts):
        model = tiny_model_config('PairDETR', dict(type='BN'))
        detector = tiny_detector(channels=64)
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(dict(detector, type=kind, backbone=model['backbone'], **parts))

    plain = stock('mmdet.ConditionalDETR').eval()
    plain.load_state_dict(exported, strict=True)
    sizes = image_sizes(images := torch.randn(2, 3, 64, 80))
    for size in sizes:
        size.set_metainfo(dict(ori_shape=(64, 80), scale_factor=(1.0, 1.0)))
    model = train.model.eval()
    with torch.no_grad():
        expected = plain.bbox_head.predict(
            **plain.forward_transformer(plain.extract_feat(images), sizes),
            batch_data_samples=sizes,
        )
        found = model.detector.bbox_head.predict(
            **model.detector.forward_transformer(model.detector.extract_feat(images), sizes),
            batch_data_samples=sizes,
        )
    for one, other in zip(found, expected):
        close(one.bboxes, other.bboxes, 1e-5)
        close(one.scores, other.scores, 1e-5)

    # as a start of another detector, strictly; the class head begins anew
    path = tmp_path / 'whole' / 'iter_8.pth'
    fill = dict(type='mmdense.SelfSupPretrained', checkpoint=str(path), part='detector')
    filled = stock('mmdense.ConditionalDETR', init_cfg=fill)
    filled.init_weights()
    for name, value in filled.state_dict().items():
        assert name.startswith('bbox_head.fc_cls.') or torch.equal(value, exported[name]), name


def test_exact_resume(train):
    """In the middle of an epoch, at its end, and with other numbers of workers."""
    whole = train()(8)
    for name, stopped, options in (
        ('middle', 2, {}),
        ('end', 4, {'train_dataloader.num_workers': 1}),
    ):
        resumed = train(name, train.path('whole', stopped), **options)(8)
        for key, value in whole['state_dict'].items():
            assert torch.equal(value, resumed['state_dict'][key]), key
        for key, state in whole['optimizer']['state'].items():
            for part, value in state.items():
                assert torch.equal(value, resumed['optimizer']['state'][key][part])


def test_numbers_of_samples(coco):
    """The pipeline's random numbers are those of the sample's number; an index has none."""
    drawn = []

    class Inner(list):
        metainfo = dict(classes=('a',))

        def full_init(self):
            """Do nothing."""

        def __getitem__(self, i):
            drawn.append((i, np.random.rand(), torch.rand(()).item()))
            return i

    dataset = SeededDataset(Inner(range(5)))
    sampler = ResumableSampler(dataset, seed=3)
    numbers = list(sampler)
    assert sorted(n % 5 for n in numbers) == list(range(5)) and min(numbers) >= 5
    state = torch.get_rng_state()
    assert [dataset[n] for n in numbers] == [n % 5 for n in numbers]
    assert torch.equal(torch.get_rng_state(), state)
    first, drawn[:] = list(drawn), []
    for n in reversed(numbers):
        dataset[n]
    assert drawn[::-1] == first and len({value for _, value, _ in first}) == 5
    sampler.set_epoch(1)
    assert not set(sampler) & set(numbers)
    assert dataset[2] == 2 and len(dataset) == 5 and dataset.metainfo == Inner.metainfo


def test_nan_is_skipped(train, monkeypatch):
    """A step whose features are not finite leaves no trace, and the run goes on."""
    steps, loss = [], PairDETR.loss

    def loss_of_bad_images(self, inputs, *args, **kwargs):
        steps.append(None)
        return loss(self, inputs * (float('nan') if len(steps) == 3 else 1), *args, **kwargs)

    monkeypatch.setattr(PairDETR, 'loss', loss_of_bad_images)
    run = train(**{'default_hooks.checkpoint.interval': 1})
    assert re.findall(r'of iteration (\d+)[^\n]*its step is skipped', train.log) == ['3']
    before, after, later = (run(i)['state_dict'] for i in (2, 3, 4))
    for name, value in before.items():
        assert torch.isfinite(later[name]).all(), name
        assert torch.equal(value, after[name]) or 'backbone' in name, name
    assert any(not torch.equal(value, later[name]) for name, value in after.items())
