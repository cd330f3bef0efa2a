# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn
from torch.nn.functional import normalize

from mmdense.models import DetCoNeck, KeyQueue, info_nce, map_channels, split_patches
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

RESNET18 = dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3))


def tiny():
    """Return what the generic tests need."""
    dim = 8

    def calls(image, patches, seen):
        # images and patches to be encoded elsewhere, and back; all eight queues' keys
        return [
            ('all_to_all_single', 3 * (image + patches) * 4),
            ('all_to_all_single', 3 * 8 * dim * 4),
            ('all_gather', 3 * 8 * dim * 4),
        ]

    second = 'train_dataloader.dataset.pipeline.1.transforms.1'
    return Tiny(
        algorithm='DetCo',
        family='queue',
        parts=lambda norm: dict(
            neck=dict(type='DetCoNeck', out_channels=dim),
            head=dict(type='InfoNCEHead'),
            queue_len=13,
            feat_dim=dim,
        ),
        backbone=dict(out_indices=(0, 1, 2, 3)),
        recipe='detco_r50_coco',
        options=['model.queue_len=64', f'{second}.0.scale=96', f'{second}.5.patch_size=32'],
        health=health_names(global_=PAIRS, local=PAIRS),
        losses=[f'loss_{pair}_stage{i}' for pair in ('gg', 'll', 'gl') for i in (2, 3, 4, 5)],
        calls=calls,
    )


def config(**changes):
    cfg = dict(
        type='DetCo',
        queue_len=64,
        feat_dim=16,
        backbone=RESNET18,
        neck=dict(type='DetCoNeck', out_channels=16),
        head=dict(type='InfoNCEHead', temperature=0.2),
    )
    cfg.update(changes)
    return cfg


def views(n=2, size=64, patch=32, grid=3):
    shapes = [(n, 3, size, size)] * 2 + [(n, 3, patch, patch * grid**2)] * 2
    return [torch.randn(shape) for shape in shapes]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Stages(nn.Module):
    """A backbone of any number of stages, each a convolution of the image."""

    def __init__(self, number):
        super().__init__()
        self.out_indices = range(number)
        self.stages = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in self.out_indices)

    def forward(self, x):
        return tuple(stage(x) for stage in self.stages)


def test_golden_losses(golden):
    """All twelve losses of the published formula, and their weighted sum,
    through loss() itself; then the queues."""
    g = golden('detco_losses')
    weights = g['stage_weights'].tolist()
    (n, feat_dim), queue_len = g['k_global'].shape[1:], g['queue_global'].size(2)
    model = MODELS.build(
        config(
            backbone=Stages(len(weights)),
            stage_weights=weights,
            head=dict(type='InfoNCEHead', temperature=float(g['temperature'])),
            queue_len=queue_len,
            feat_dim=feat_dim,
        )
    )
    for kind, queues in (('global', model.queues_global), ('local', model.queues_local)):
        for i, keys in enumerate(g[f'queue_{kind}']):
            queues[i] = KeyQueue(*keys.shape)
            queues[i].keys.copy_(keys)

    def recorded(backbone, neck, view, patches):
        side = 'q' if neck is model.neck else 'k'
        return [[*g[f'{side}_{kind}']] for kind in ('global', 'local')]

    model._encode = recorded
    losses = model.loss([torch.zeros(n, 3, 2, 2)] * 2 + [torch.zeros(n, 3, 2, 18)] * 2)
    names = dict(gg='global_global', ll='local_local', gl='local_global')
    for pairing, name in names.items():
        for i, weight in enumerate(weights):
            close(losses[f'loss_{pairing}_stage{i + 2}'], weight * g[f'loss_{name}'][i])
    close(sum(losses.values()), g['loss'])
    # one pointer discipline: each queue moved by the batch, after the loss
    for kind, queues in (('global', model.queues_global), ('local', model.queues_local)):
        for queue, keys in zip(queues, g[f'k_{kind}']):
            close(queue.keys[:, :n].t(), keys)
            assert int(queue.filled) == n and int(queue.ptr) == n % queue.queue_len


def test_there_are_eight_queues_of_one_class():
    model = MODELS.build(config())
    queues = [m for m in model.modules() if isinstance(m, KeyQueue)]
    assert len(queues) == 8
    assert {(q.feat_dim, q.queue_len) for q in queues} == {(16, 64)}


def test_heads_see_what_they_should():
    """Local: all patches of an image, in order; global: the image alone."""
    torch.manual_seed(0)
    neck = DetCoNeck([4, 6], out_channels=8, grid=2)
    maps = [torch.randn(3 * 4, c, 2, 2) for c in (4, 6)]
    local = neck.forward_local(maps)
    for i, x in enumerate(maps):
        assert neck.heads_local[i][0].in_features == 4 * x.size(1)
        for n in range(3):
            pooled = torch.cat([x[4 * n + k].mean((1, 2)) for k in range(4)])
            close(local[i][n], neck.heads_local[i](pooled[None])[0])
    out = neck([m[:3] for m in maps])
    close(out[1][2], neck.heads_global[1](maps[1][2].mean((1, 2))[None])[0])
    parameters = [p.data_ptr() for p in neck.parameters()]
    assert len(set(parameters)) == len(parameters) == 2 * 2 * 4


def test_loss_is_made_of_its_parts():
    """By hand, stage by stage, with the twin as the copy that it is at first."""
    model = MODELS.build(config()).eval()
    inputs = views()
    queues = [[q.keys.clone() for q in qs] for qs in (model.queues_global, model.queues_local)]
    losses = model.loss(inputs)
    with torch.no_grad():
        whole = [model.neck(model.backbone(v)) for v in inputs[:2]]
        local = [model.neck.forward_local(model.backbone(split_patches(p, 3))) for p in inputs[2:]]
    (qg, kg), (ql, kl) = ([[normalize(x, dim=1) for x in y] for y in z] for z in (whole, local))
    for i, weight in enumerate((0.1, 0.4, 0.7, 1.0)):
        close(losses[f'loss_gg_stage{i + 2}'], weight * info_nce(qg[i], kg[i], queues[0][i]))
        close(losses[f'loss_ll_stage{i + 2}'], weight * info_nce(ql[i], kl[i], queues[1][i]))
        close(losses[f'loss_gl_stage{i + 2}'], weight * info_nce(ql[i], kg[i], queues[0][i]))
    close(model.queues_global[0].keys[:, :2].t(), kg[0])
    close(model.queues_local[3].keys[:, :2].t(), kl[3])


@pytest.mark.parametrize(
    'changes, expected',
    [
        (dict(pairings=('gg',)), {f'loss_gg_stage{i}' for i in (2, 3, 4, 5)}),
        (dict(stage_weights=(1.0,)), {f'loss_{p}_stage5' for p in ('gg', 'll', 'gl')}),
        (
            dict(pairings=('gg', 'gl'), stage_weights=(0.5, 1.0)),
            {f'loss_{p}_stage{i}' for p in ('gg', 'gl') for i in (4, 5)},
        ),
        (dict(pairings=['gg', 'll']), None),
    ],
    ids=['multi-level', 'global-local', 'two of each', 'no gl'],
)
def test_ablations(changes, expected):
    model = MODELS.build(config(**changes))
    inputs = views() if model.with_local else views()[:2]
    losses = model.loss(inputs)
    assert expected is None or set(losses) == expected
    sum(losses.values()).backward()
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop


def test_stages_are_named_by_the_backbones_own_numbers():
    backbone = dict(RESNET18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1))
    backbone['out_indices'] = (0, 1, 2)
    losses = MODELS.build(config(backbone=backbone, stage_weights=(0.4, 0.7))).loss(views())
    assert {name[-1] for name in losses} == {'3', '4'}


@pytest.mark.parametrize(
    'backbone, channels',
    [
        (RESNET18, (64, 128, 256, 512)),
        (dict(RESNET18, depth=50), (256, 512, 1024, 2048)),
        (
            dict(
                type='mmpretrain.ConvNeXt',
                arch='tiny',
                gap_before_final_norm=False,
                out_indices=(0, 1, 2, 3),
            ),
            (96, 192, 384, 768),
        ),
        (
            dict(
                type='mmpretrain.SwinTransformer',
                arch='tiny',
                img_size=64,
                pad_small_map=True,
                out_indices=(0, 1, 2, 3),
            ),
            (96, 192, 384, 768),
        ),
    ],
    ids=['resnet18', 'resnet50', 'convnext-tiny', 'swin-tiny'],
)
def test_backbones_build_and_step(backbone, channels):
    model = MODELS.build(config(backbone=backbone))
    model.init_weights()
    assert map_channels(model.backbone) == channels  # typed nowhere
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model(views(), mode='loss')
    sum(losses.values()).backward()
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused
    assert all(p.grad is None for p in model.encoder_k.parameters())
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_trying_a_backbone_leaves_it_as_it_was():
    model = MODELS.build(config())
    model.backbone.layer1.eval()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    map_channels(model.backbone)
    assert model.backbone.training and not model.backbone.layer1.training
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_its_own_state_dict_goes_round():
    model, other = MODELS.build(config()), MODELS.build(config())
    model.loss(views())
    other.load_state_dict(model.state_dict(), strict=True)
    inputs = views()
    for m in (model, other):
        m.loss(inputs)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_descent():
    """With twin and queues held still the sum falls, and so does what starts
    high: local queries know nothing of global keys at first."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    model.encoder_k.update_parameters = lambda online: None
    queues = [*model.queues_global, *model.queues_local]
    keys = [queue.keys.clone() for queue in queues]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = views(n=4)
    history = []
    for _ in range(8):
        for queue, fixed in zip(queues, keys):
            queue.keys.copy_(fixed)
        losses = model.loss(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = history[0], history[-1]
    assert sum(last.values()) < 0.8 * sum(first.values())
    for stage in (2, 3, 4, 5):
        assert last[f'loss_gl_stage{stage}'] < 0.8 * first[f'loss_gl_stage{stage}']


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(stage_weights=(1,) * 5), 'has 5 stages, but the backbone returns 4 maps'),
        (
            dict(backbone=dict(type='mmpretrain.ResNet', depth=18)),
            'has 4 stages, but the backbone returns 1 maps: set its out_indices',
        ),
        (
            dict(backbone=dict(type='mmpretrain.ConvNeXt', arch='tiny')),
            'and not feature maps',
        ),
        (dict(stage_weights=()), 'stage_weights must list a weight by stage'),
        (dict(stage_weights=(0, 1)), 'stage_weights must be a number above 0'),
        (dict(pairings=('gg', 'lg')), "pairings must be 'gg' and perhaps others"),
        (dict(pairings=('ll',)), "pairings must be 'gg' and perhaps others"),
        (dict(queue_len=0), 'queue_len must be a whole number'),
        (dict(neck=dict(type='DetCoNeck', grid=0)), 'grid must be a whole number'),
        (dict(neck=None), 'DetCo needs a neck'),
    ],
)
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_wrong_batches_say_so():
    model = MODELS.build(config())
    with pytest.raises(InputError, match='DetCo needs 4 views of every image, got 2'):
        model.loss(views()[:2])
    with pytest.raises(InputError, match='expected strips of 9 square patches'):
        model.loss(views(grid=2))


@pytest.mark.parametrize(
    'path, epochs, lr, pairings, weights',
    [
        ('configs/detco_r50_in1k.py', 200, 0.03, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        ('configs/detco_r50_coco.py', 800, 0.3, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        (
            'configs/detco/detco-aa_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        ),
        (
            'configs/detco/detco-multi-level_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg',), (0.1, 0.4, 0.7, 1.0)),
        ),
        (
            'configs/detco/detco-global-local_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg', 'll', 'gl'), (1.0,)),
        ),
    ],
)
def test_detco_recipe(path, epochs, lr, pairings, weights):
    config = load_recipe(path)
    assert config.train_cfg.max_epochs == epochs
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4
    )
    model = config.model
    assert (model.pairings, model.stage_weights) == (pairings, weights)
    assert (model.queue_len, model.feat_dim, model.momentum) == (65536, 128, 0.001)
    assert (model.head.temperature, model.backbone.norm_cfg.type) == (0.2, 'BN')
    assert 'in_channels' not in model.neck  # read from the backbone
    views = config.train_dataloader.dataset.pipeline[1]
    assert views.num_views == (2 if pairings == ('gg',) else [2, 2])  # with patches or without


@pytest.mark.parametrize('kind', ['gg', 'll', 'lg'])
def test_golden_info_nce(golden, kind):
    """All losses are InfoNCE, on their pairs."""
    g = golden('detco_losses')
    query, key, name = {
        'gg': ('q_global', 'k_global', 'loss_global_global'),
        'll': ('q_local', 'k_local', 'loss_local_local'),
        'lg': ('q_local', 'k_global', 'loss_local_global'),
    }[kind]
    queue = g['queue_local' if kind == 'll' else 'queue_global']
    for stage in range(len(queue)):
        q, k = normalize(g[query][stage], dim=1), normalize(g[key][stage], dim=1)
        close(info_nce(q, k, queue[stage], float(g['temperature'])), g[name][stage])
