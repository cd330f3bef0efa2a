# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from mmengine.dist import get_world_size
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn

from mmdense.models import NTXentHead, RunFacts, SimCLR
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    projections = 3 * 2 * 32 * 4  # of both views

    def calls(image, patches, seen):
        (processes,) = seen
        return [('all_gather', projections), ('all_reduce', processes * projections)]

    def parts(norm):
        norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
        neck = dict(type='SimCLRNeck', in_channels=64, hid_channels=16, out_channels=32)
        head = dict(type='NTXentHead', temperature=0.5)
        return dict(neck=dict(neck, norm_cfg=norm), head=head)

    return Tiny(
        algorithm='SimCLR',
        family='siamese',
        parts=parts,
        recipe='simclr_r50_coco',
        options=['model.neck.in_channels=512', 'model.neck.hid_channels=64'],
        health=health_names(global_=PAIRS),
        losses=['loss'],
        collapses=False,  # its last BatchNorm keeps projections apart
        passes=1,  # both views at once
        grows=['all_reduce'],  # the gradients of all processes' projections
        watch=lambda: [get_world_size()],
        calls=calls,
    )


def config(**changes):
    cfg = dict(
        type='SimCLR',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        neck=dict(
            type='SimCLRNeck',
            in_channels=512,
            hid_channels=32,
            out_channels=16,
            norm_cfg=dict(type='BN1d'),
        ),
        head=dict(type='NTXentHead', temperature=0.1),
    )
    return dict(cfg, **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


class Pixels(nn.Module):
    """A backbone, and a neck, that returns the pixels as they are."""

    def forward(self, x):
        return (x.flatten(1),) if isinstance(x, torch.Tensor) else x


def test_golden_loss(golden):
    """Compute the published loss and its gradient through loss() itself."""
    g = golden('simclr_ntxent')
    model = MODELS.build(config(head=dict(type='NTXentHead', temperature=float(g['temperature']))))
    model.backbone = model.neck = Pixels()
    hidden = g['hidden'][:, :, None, None].requires_grad_()
    (loss,) = model.loss(list(hidden.chunk(2))).values()
    close(loss, g['loss'])
    close(torch.autograd.grad(loss, hidden)[0].flatten(1), g['grad'])


def test_both_views_share_their_batch_norm():
    """The published code sends both views through the networks as one batch."""
    model = MODELS.build(config())
    rows = []
    model.backbone.register_forward_hook(lambda module, inputs, out: rows.append(len(out[0])))
    model.loss([torch.randn(3, 3, 64, 64) for _ in range(2)])
    assert rows == [6]


def test_twice_the_loss_of_mmpretrain():
    """In one process mmpretrain's loss is half of the published code's."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    theirs_head = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.1)
    neck = dict(config()['neck'], type='mmpretrain.NonLinearNeck')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MMPRETRAIN.build(config(neck=neck, head=theirs_head))
    ours = MODELS.build(config(neck=neck, head=theirs_head, channels_last=False))
    assert type(ours) is SimCLR and type(ours.head) is NTXentHead and type(theirs) is not SimCLR
    ours.load_state_dict(theirs.state_dict(), strict=True)
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    for model in (theirs, ours):
        model.result = model(views, mode='loss', data_samples=None)
        sum(model.result.values()).backward()
    close(ours.result['loss'], 2 * theirs.result['loss'])
    # theirs orders the rows by image, which BatchNorm does not see
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(name).grad, 2 * p.grad, rtol=1e-3, atol=1e-4, msg=name
        )


def test_the_last_norm_has_no_shift():
    neck = MODELS.build(config()['neck'])
    neck.init_weights()
    assert not neck.bn1.bias.requires_grad and not neck.bn1.bias.any()
    assert neck.bn1.weight.requires_grad and neck.bn0.bias.requires_grad
    assert neck.fc0.weight.std().item() == pytest.approx(0.01, rel=0.1)
    three = MODELS.build(dict(config()['neck'], num_layers=3))
    assert not three.bn2.bias.requires_grad and three.bn1.bias.requires_grad


def test_learns():
    """Some steps on one batch bring the loss from chance, 2 ln(2N − 1), far down."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.randn(8, 3, 32, 32)
    history = []
    for _ in range(20):
        views = [batch + 0.1 * torch.randn_like(batch) for _ in range(2)]
        (loss,) = model.loss(views).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 3, history


@pytest.mark.parametrize('batch, few', [(32, True), (1024, False)])
def test_the_planner_says_how_many_negatives_there_are(batch, few):
    facts = RunFacts(images=5000, batch=batch, steps=1000, recipe=None)
    (row,) = SimCLR.small_data_rules(facts)
    assert row.value == f'{2 * batch - 2:,}' and ('few' in row.reason) == few and not row.config


def test_a_neck_and_a_head_are_needed():
    for part in ('neck', 'head'):
        with pytest.raises(InputError, match='SimCLR needs a neck and a head'):
            MODELS.build(config(**{part: None}))


@pytest.mark.parametrize(
    'path, epochs, layers, lr, decay',
    [
        ('configs/simclr_r50_in1k.py', 100, 2, 4.8, 1e-6),
        ('configs/simclr/simclr_resnet50_16xb256-coslr-1000e_in1k.py', 1000, 2, 4.8, 1e-6),
        ('configs/simclr/simclr-mlp3_resnet50_16xb256-coslr-800e_in1k.py', 800, 3, 4.8, 1e-4),
        ('configs/simclr_r50_coco.py', 800, 2, 1.2, 1e-6),
    ],
)
def test_recipe(path, epochs, layers, lr, decay):
    """Published settings: LARS with the learning rate in its buffer, 0.3 for 256 images."""
    recipe = load_recipe(path)
    assert recipe.train_cfg.max_epochs == epochs and recipe.model.neck.num_layers == layers
    optimizer = recipe.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.lr_in_buffer) == (lr, decay, True)
    assert lr == pytest.approx(0.3 * recipe.auto_scale_lr.base_batch_size / 256)
    (schedule,) = recipe.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (10, 0, 0)
    assert list(recipe.model.data_preprocessor.std) == [255.0] * 3
    assert recipe.model.head.temperature == 0.1
