# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
import re

import pytest
import torch
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn

from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.models import InfoNCEHead, MoCo, MomentumEncoder
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

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

    linear = dict(type='mmpretrain.LinearNeck', in_channels=64, out_channels=dim, gap_dim=2)
    rest = dict(head=dict(type='InfoNCEHead'), queue_len=13, feat_dim=dim)
    return Tiny(
        algorithm='MoCo',
        family='queue',
        parts=lambda norm: dict(neck=neck, **rest),
        recipe='mocov2_r50_coco',
        options=['model.neck.in_channels=512', 'model.neck.hid_channels=64', 'model.queue_len=64'],
        health=health_names(global_=PAIRS),
        losses=['loss'],
        calls=calls,
        variants=dict(MoCoV1=lambda norm: dict(neck=dict(linear, norm_cfg=None), **rest)),
    )


V1 = dict(type='mmpretrain.LinearNeck', in_channels=512, out_channels=16, gap_dim=2, norm_cfg=None)
V2 = dict(type='mmpretrain.MoCoV2Neck', in_channels=512, hid_channels=32, out_channels=16)


def config(**changes):
    cfg = dict(
        type='MoCo',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        neck=V2,
        head=dict(type='InfoNCEHead', temperature=0.2),
        queue_len=64,
        feat_dim=16,
    )
    return dict(cfg, **changes)


def close(ours, theirs, name=None, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=name)


class Pixels(nn.Module):
    """A backbone whose map is the view."""

    def forward(self, x):
        return (x,)


class Vectors(nn.Module):
    """A neck of the published code's layers ``fc``, on vectors."""

    def __init__(self, fc):
        super().__init__()
        self.fc = fc

    def forward(self, maps):
        return (self.fc(maps[-1].flatten(1)),)


def golden_model(neck, queue, ptr, temperature, momentum=0.999):
    model = MODELS.build(
        config(
            queue_len=queue.size(1),
            feat_dim=queue.size(0),
            head=dict(type='InfoNCEHead', temperature=float(temperature)),
        )
    )
    model.backbone, model.neck = Pixels(), neck
    model.encoder_k = MomentumEncoder(model.online_network(), 1 - momentum)
    model.queue.keys.copy_(queue)
    model.queue.ptr.copy_(ptr)
    return model


def images(rows):
    return rows[:, :, None, None]


def test_golden_loss(golden):
    """Compute the published loss, its gradient and the queue after it, through loss() itself."""
    g = golden('mocov1_loss')
    model = golden_model(Vectors(nn.Identity()), g['queue'], 0, g['temperature'])
    model.encoder_k.update = lambda online: None  # there are no weights
    q = images(g['q']).requires_grad_()
    (loss,) = model.loss([q, images(g['k'])]).values()
    close(loss, g['loss'])
    close(torch.autograd.grad(loss, q)[0].flatten(1), g['grad_q'])
    close(model.queue.keys, g['queue_after'])
    assert torch.equal(model.queue.ptr, g['ptr_after'])


def layers(state):
    """Build the layers whose tensors a golden has."""

    def linear(name):
        rows, columns = state[f'{name}.weight'].shape
        return nn.Linear(columns, rows)

    if 'fc.weight' in state:
        return linear('fc')
    return nn.Sequential(linear('fc.0'), nn.ReLU(), linear('fc.2'))


def test_golden_steps(golden):
    """Take the published steps. Rounding is amplified by them: weights move by 3e-5 when inputs
    move by 6e-8, thus 1e-4."""
    g = golden('mocov1_steps')

    def state(kind, step):
        start = f'{kind}_{step}.'
        return {k[len(start) :]: v for k, v in g.items() if k.startswith(start)}

    steps = sorted(int(k[len('loss_') :]) for k in g if re.fullmatch(r'loss_\d+', k))
    first = state('student', 0)
    model = golden_model(
        Vectors(layers(first)), g['queue_0'], 0, g['temperature'], float(g['momentum'])
    )
    model.neck.load_state_dict(first)
    model.encoder_k.initialize(model.online_network())
    optimizer = torch.optim.SGD(
        model.neck.parameters(),
        lr=float(g['lr']),
        momentum=float(g['sgd_momentum']),
        weight_decay=float(g['weight_decay']),
    )

    def check(step):
        for kind, part in (('student', model.neck), ('twin', model.encoder_k.module[1])):
            for name, value in state(kind, step).items():
                close(part.state_dict()[name], value, f'{kind} {step} {name}', 1e-4)
        if f'queue_{step}' in g:
            close(model.queue.keys, g[f'queue_{step}'], f'queue {step}', 1e-4)
        if f'queue_ptr_{step}' in g:
            assert int(model.queue.ptr) == int(g[f'queue_ptr_{step}'])

    for step in steps:
        check(step)
        (loss,) = model.loss([images(g[f'x_{x}_{step}']) for x in 'qk']).values()
        close(loss, g[f'loss_{step}'], f'loss {step}', 1e-4)
        optimizer.zero_grad()
        loss.backward()
        for name, grad in state('grad', step).items():
            close(model.neck.get_parameter(name).grad, grad, f'grad {step} {name}', 1e-4)
        optimizer.step()
    check(len(steps))
    assert len(steps) > 1 and any(k.startswith(f'twin_{len(steps)}.') for k in g)


@pytest.mark.parametrize('neck', [V1, V2], ids=['v1', 'v2'])
def test_equals_mmpretrain(neck):
    """State dict, loss and gradients, where mmpretrain computes what the published code does."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    theirs_head = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MMPRETRAIN.build(config(neck=neck, head=theirs_head))
    ours = MODELS.build(config(neck=neck, head=theirs_head, channels_last=False))
    assert type(ours) is MoCo and type(ours.head) is InfoNCEHead and type(theirs) is not MoCo
    theirs.encoder_k.steps += 1  # both move the momentum encoder alike from here
    ours.load_state_dict(theirs.state_dict(), strict=True)
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    for model in (theirs, ours):
        model.result = model(views, mode='loss', data_samples=None)
        sum(model.result.values()).backward()
    close(ours.result['loss'], theirs.result['loss'])
    for name, p in theirs.named_parameters():
        if p.grad is not None:
            close(ours.get_parameter(name).grad, p.grad, name)
    close(ours.queue.keys, theirs.queue)
    assert int(ours.queue.ptr) == int(theirs.queue_ptr) == 4


def authors_file(model, version, released):
    """Return a file as the published code writes one, from the tensors of a model."""
    head = {'neck.mlp': 'fc', 'neck.fc': 'fc'}
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ('backbone.', 'encoder_q.'),
            ('encoder_k.module.0.', 'encoder_k.'),
            ('encoder_k.module.1.mlp.', 'encoder_k.fc.'),
            ('encoder_k.module.1.fc.', 'encoder_k.fc.'),
            *((f'{a}.', f'encoder_q.{b}.') for a, b in head.items()),
            ('queue.keys', 'queue'),
            ('queue.ptr', 'queue_ptr'),
        ):
            if name.startswith(ours):
                state[f'module.{theirs}{name[len(ours) :]}'] = value.clone()
                break
    if released:
        state = {k: v for k, v in state.items() if k.startswith('module.encoder_q.')}
    return dict(epoch=200, arch='resnet18', state_dict=state, optimizer={})


@pytest.mark.parametrize('released', [False, True], ids=['training', 'released'])
@pytest.mark.parametrize('version, neck', [(1, V1), (2, V2)], ids=['v1', 'v2'])
def test_files_of_the_authors(version, neck, released, tmp_path):
    """The complete algorithm continues from a training file, a released one has the backbone."""
    model = MODELS.build(config(neck=neck))
    model.queue.ptr.fill_(20)
    torch.save(authors_file(model, version, released), tmp_path / 'file.pth')
    found = recognise(read_checkpoint(tmp_path / 'file.pth'))
    assert found.source == f'MoCo v{version}'
    backbone = model.backbone.state_dict()
    assert found.backbone.keys() == backbone.keys()
    assert all(torch.equal(found.backbone[k], backbone[k]) for k in backbone)
    if released:
        assert found.algorithm is None
        return
    other = MODELS.build(config(neck=neck))
    other.load_state_dict(other.as_new_run(found.algorithm), strict=True)
    for name, value in other.state_dict().items():
        if name not in ('encoder_k.steps', 'queue.filled'):
            assert torch.equal(value, model.state_dict()[name]), name
    assert int(other.encoder_k.steps) == 1 and int(other.queue.filled) == 64


def test_the_queue_takes_any_length():
    model = MODELS.build(config(queue_len=10))
    views = torch.randn(2, 4, 3, 64, 64)
    for _ in range(3):
        model.loss(list(views))
    assert int(model.queue.ptr) == 2 and int(model.queue.filled) == 10


def test_the_queue_is_contrasted_before_its_own_keys():
    """The keys of a batch are no negatives of the same batch."""
    model = MODELS.build(config())
    before = model.queue.keys.clone()
    seen = []
    model.head.loss = lambda q, k, queue: seen.append(queue.clone()) or q.sum()
    model.loss([torch.randn(4, 3, 64, 64) for _ in range(2)])
    assert torch.equal(seen[0], before) and not torch.equal(model.queue.keys, before)


def test_learns():
    """Some steps on two batches, whose keys are each other's negatives, bring the loss far below
    its highest value."""
    torch.manual_seed(0)
    model = MODELS.build(config(queue_len=8))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = torch.randn(2, 8, 3, 32, 32)
    history = []
    for step in range(30):
        batch = batches[step % 2]
        views = [batch + 0.1 * torch.randn_like(batch) for _ in range(2)]
        (loss,) = model.loss(views).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < max(history) / 2, history


def test_a_neck_and_a_head_are_needed():
    for part in ('neck', 'head'):
        with pytest.raises(InputError, match='MoCo needs a neck and a head'):
            MODELS.build(config(**{part: None}))


@pytest.mark.parametrize(
    'path, epochs, head, temperature',
    [
        ('configs/mocov1/mocov1_resnet50_8xb32-steplr-200e_in1k.py', 200, 'LinearNeck', 0.07),
        ('configs/mocov2_r50_in1k.py', 200, 'MoCoV2Neck', 0.2),
        ('configs/mocov2/mocov2_resnet50_8xb32-coslr-800e_in1k.py', 800, 'MoCoV2Neck', 0.2),
        ('configs/mocov2_r50_coco.py', 800, 'MoCoV2Neck', 0.2),
    ],
)
def test_recipe(path, epochs, head, temperature):
    """Published settings: SGD, lr 0.03 for 256 images, decay on every parameter."""
    recipe = load_recipe(path)
    assert recipe.train_cfg.max_epochs == epochs
    assert recipe.model.neck.type == f'mmpretrain.{head}'
    assert recipe.model.head.temperature == temperature
    model = recipe.model
    assert (model.queue_len, model.feat_dim, model.momentum) == (65536, 128, 0.001)
    optimizer = recipe.optim_wrapper.optimizer
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert 'paramwise_cfg' not in recipe.optim_wrapper
    assert optimizer.lr == (0.3 if 'coco' in path else 0.03)


def test_mocov1_lowers_its_learning_rate_by_steps():
    recipe = load_recipe('configs/mocov1_r50_in1k.py')
    (schedule,) = recipe.param_scheduler
    assert schedule == dict(type='MultiStepShareLR', by_epoch=True, shares=[0.6, 0.8], gamma=0.1)
    steps = [step['type'] for step in recipe.view_pipeline]
    assert steps == ['RandomResizedCrop', 'RandomGrayscale', 'ColorJitter', 'RandomFlip']
    jitter = copy.deepcopy(recipe.view_pipeline[2])
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4,) * 4
    assert jitter.get('prob', 1.0) == 1.0
