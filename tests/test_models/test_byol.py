# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math

import pytest
import torch
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn

from mmdense.models import BYOL, CosinePredictionHead
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
        neck, head = networks(64, 16, 8, norm)
        return dict(neck=neck, head=head, total_steps=50)

    return Tiny(
        algorithm='BYOL',
        family='momentum',
        parts=parts,
        recipe='byol_r50_coco',
        options=[
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'model.head.predictor.hid_channels=64',
        ],
        health=health_names(global_=PAIRS),
        losses=['loss'],
    )


def networks(in_channels, hidden, channels, norm=None):
    """Return the configs of the projector and of the head, as the paper has them."""
    mlp = dict(
        type='mmpretrain.NonLinearNeck',
        hid_channels=hidden,
        out_channels=channels,
        with_bias=True,
        with_last_bn=False,
        norm_cfg=norm or dict(type='BN1d'),
    )
    predictor = dict(mlp, in_channels=channels, with_avg_pool=False)
    return dict(mlp, in_channels=in_channels), dict(
        type='CosinePredictionHead', predictor=predictor
    )


def config(**changes):
    neck, head = networks(512, 32, 16)
    backbone = dict(type='mmpretrain.ResNet', depth=18)
    cfg = dict(type='BYOL', backbone=backbone, neck=neck, head=head, total_steps=100)
    return dict(cfg, **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


class Known(nn.Module):
    """A network whose output is given, by the first pixel of its input."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        x = x[0] if isinstance(x, tuple) else x
        return (self.outputs[int(x.flatten()[0])],)


def test_golden_loss(golden):
    """Compute the published loss and its gradients through loss() itself."""
    g = golden('byol_loss')
    predictions = [g[name].requires_grad_() for name in ('p1', 'p2')]
    views = [torch.full((len(g['p1']), 3, 1, 1), float(i)) for i in range(2)]
    model = MODELS.build(config())
    model.backbone = model.neck = Known(*views)  # a view's number goes through
    model.head.predictor = Known(*predictions)
    model.encoder_k.module = Known(g['z1'], g['z2'])
    model.encoder_k.update = lambda online: None
    (loss,) = model.loss(views).values()
    close(loss, g['loss'])
    for grad, name in zip(torch.autograd.grad(loss, predictions), ('p1', 'p2')):
        close(grad, g[f'grad_{name}'])


def test_golden_momentum(golden):
    """The momentum follows the published cosine, from its second value on: the update that the
    published code does at the end of a step is done at the beginning of the next."""
    g = golden('byol_schedules')
    total = int(g['total_steps'])
    first = 1 - float(g['tau'][0])
    model = MODELS.build(config(base_momentum=first, total_steps=total))
    for step, tau in enumerate(g['tau'].tolist()):
        model.encoder_k.steps.fill_(step)
        model.encoder_k._steps = None
        assert model.encoder_k.current_momentum() == pytest.approx(1 - tau, rel=1e-5, abs=1e-7)
        one_late = (1 - tau) - first * (1 + math.cos(math.pi * (step + 1) / total)) / 2
        assert one_late <= math.pi / 2 * first / total + 1e-9


def test_follows_mmpretrain_but_for_the_constant():
    """Losses are mmpretrain's plus 4, gradients equal; the momentum encoder keeps its own
    BatchNorm statistics."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    head = dict(
        type='LatentPredictHead',
        loss=dict(type='CosineSimilarityLoss'),
        predictor=config()['head']['predictor'],
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg = config(head=head)
        cfg.pop('total_steps')
        theirs = MMPRETRAIN.build(cfg)
    ours = MODELS.build(config(head=head, channels_last=False))
    assert (
        type(ours) is BYOL and type(ours.head) is CosinePredictionHead and type(theirs) is not BYOL
    )
    theirs.target_net.steps += 1
    state = theirs.state_dict()
    assert any(name.startswith('target_net.') for name in state)
    ours.load_state_dict(state, strict=True)
    # from here on the momentum encoder stands still in both
    theirs.target_net.update_parameters = ours.encoder_k.update = lambda model: None
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    for model in (theirs, ours):
        model.result = model(views, mode='loss', data_samples=None)
        sum(model.result.values()).backward()
    close(ours.result['loss'], theirs.result['loss'] + 4)
    for name, p in theirs.named_parameters():
        if p.grad is not None:
            close(ours.get_parameter(name).grad, p.grad, name)


def test_the_momentum_encoder_has_its_own_statistics():
    model = MODELS.build(config())
    for _ in range(2):
        model.loss([torch.randn(4, 3, 64, 64) for _ in range(2)])
    online, momentum = model.backbone.bn1, model.encoder_k.module[0].bn1
    assert int(online.num_batches_tracked) == int(momentum.num_batches_tracked) == 4
    assert all(p.grad is None for p in model.encoder_k.parameters())


def test_learns():
    """Some steps on one batch bring the loss near its minimum, 0."""
    torch.manual_seed(0)
    model = MODELS.build(config(base_momentum=0.1))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    batch = torch.randn(8, 3, 32, 32)
    history = []
    for _ in range(20):
        views = [batch + 0.1 * torch.randn_like(batch) for _ in range(2)]
        (loss,) = model.loss(views).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[0] > 3 and history[-1] < 1, history


def test_a_neck_and_a_head_are_needed():
    for part in ('neck', 'head'):
        with pytest.raises(InputError, match='BYOL needs a neck and a head'):
            MODELS.build(config(**{part: None}))


@pytest.mark.parametrize(
    'path, epochs, base_lr, decay, momentum',
    [
        ('configs/byol_r50_in1k.py', 100, 0.45, 1e-6, 0.01),
        ('configs/byol/byol_resnet50_16xb256-coslr-300e_in1k.py', 300, 0.3, 1e-6, 0.01),
        ('configs/byol/byol_resnet50_16xb256-coslr-1000e_in1k.py', 1000, 0.2, 1.5e-6, 0.004),
        ('configs/byol_r50_coco.py', 800, 0.45, 1e-6, 0.01),
    ],
)
def test_recipe(path, epochs, base_lr, decay, momentum):
    """Published settings by length (the published code's presets)."""
    recipe = load_recipe(path)
    assert recipe.train_cfg.max_epochs == epochs
    assert recipe.model.base_momentum == momentum
    optimizer = recipe.optim_wrapper.optimizer
    assert optimizer.type == 'mmdense.LARS' and optimizer.weight_decay == decay
    batch = recipe.auto_scale_lr.base_batch_size
    assert optimizer.lr == pytest.approx(base_lr * batch / 256)
    (schedule,) = recipe.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (10, 0, 0)
