# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import math
import re
from pathlib import Path
from types import SimpleNamespace

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn

from mmdense.checkpoints import read_checkpoint, recognise
from mmdense.models import SimSiam
from mmdense.registry import HOOKS, MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        projector, head = networks(64, 16, 16, 16, norm)
        return dict(neck=projector, head=head)

    return Tiny(
        algorithm='SimSiam',
        family='siamese',
        parts=parts,
        recipe='simsiam_r50_coco',
        options=[
            'model.neck.in_channels=512',
            *(f'model.neck.{name}=64' for name in ('hid_channels', 'out_channels')),
            *(f'model.head.predictor.{name}=64' for name in ('in_channels', 'out_channels')),
            'model.head.predictor.hid_channels=16',
        ],
        health=health_names(global_=PAIRS),
        losses=['loss'],
        collapses=False,  # its last BatchNorm has no scale and no shift
    )


def networks(in_channels, hidden, channels, predictor_hidden, norm=None, bias=False):
    """Return the configs of the projector and of the head, as the paper has them."""
    norm = norm or dict(type='BN')
    norm = dict(norm, type='BN1d') if norm['type'] == 'BN' else norm  # of vectors
    mlp = dict(type='mmpretrain.NonLinearNeck', norm_cfg=norm)
    projector = dict(
        mlp,
        in_channels=in_channels,
        hid_channels=hidden,
        out_channels=channels,
        num_layers=3,
        with_last_bn_affine=False,
        with_last_bias=bias,
    )
    predictor = dict(
        mlp,
        in_channels=channels,
        hid_channels=predictor_hidden,
        out_channels=channels,
        with_avg_pool=False,
        with_last_bn=False,
        with_last_bias=True,
    )
    loss = dict(type='mmpretrain.CosineSimilarityLoss')
    return projector, dict(type='mmpretrain.LatentPredictHead', loss=loss, predictor=predictor)


def config(**changes):
    neck, head = networks(512, 32, 32, 8)
    backbone = dict(type='mmpretrain.ResNet', depth=18)
    return dict(dict(type='SimSiam', backbone=backbone, neck=neck, head=head), **changes)


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


class Pixels(nn.Module):
    """A backbone whose map is the view."""

    def forward(self, x):
        return (x,)


class Recorded(nn.Module):
    """A network whose outputs are recorded, by its input."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x):
        (found,) = [i for i, known in enumerate(self.inputs) if torch.equal(x[0], known)]
        return (self.outputs[found],)


def test_golden_loss(golden):
    """Compute the published loss and its gradients through loss() itself."""
    g = golden('simsiam_loss')
    outputs = [g[name].requires_grad_() for name in ('p1', 'p2')]
    views = [torch.full((len(z), 3, 1, 1), float(i)) for i, z in enumerate((g['z1'], g['z2']))]
    model = MODELS.build(config())
    model.backbone, model.neck = Pixels(), Recorded(views, [g['z1'], g['z2']])
    model.head.predictor = Recorded([g['z1'], g['z2']], outputs)
    (loss,) = model.loss(views).values()
    close(loss, g['loss'])
    for grad, name in zip(torch.autograd.grad(loss, outputs), ('p1', 'p2')):
        close(grad, g[f'grad_{name}'])


def our_name(theirs):
    """Return our name of a tensor of the published code."""
    if theirs.startswith('predictor.'):
        prefix, number = 'head.predictor.', int(theirs.split('.')[1])
    else:
        prefix, number = 'neck.', int(theirs.split('.')[2])
    kind = ('fc', 'bn')[number % 3]  # 2 and 5 are ReLU
    return f'{prefix}{kind}{number // 3}.{theirs.rsplit(".", 1)[1]}'


def golden_model(state):
    """Build the networks whose tensors a golden has."""
    first, last = state['neck.fc0.weight'], state['neck.fc2.weight']
    hidden = state['head.predictor.fc0.weight'].size(0)
    bias = 'neck.fc2.bias' in state
    neck, head = networks(first.size(1), first.size(0), last.size(0), hidden, bias=bias)
    model = MODELS.build(config(neck=neck, head=head))
    model.backbone = Pixels()
    model.load_state_dict(state, strict=True)
    if bias:  # frozen in the published code: the BatchNorm after it takes it away
        model.neck.fc2.bias.requires_grad_(False)
    return model


def test_golden_steps(golden):
    """Take the published steps of SGD: losses, first gradients, and the tensors after them."""
    g = golden('simsiam_steps')
    before, after, grads = (
        {our_name(k[len(part) :]): v for k, v in g.items() if k.startswith(part)}
        for part in ('before.', 'after.', 'grad_0.')
    )
    model = golden_model(before)
    predictor = list(model.head.predictor.parameters())
    rest = [p for p in model.neck.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [dict(params=rest), dict(params=predictor)],
        lr=float(g['base_lr']),
        momentum=float(g['sgd_momentum']),
        weight_decay=float(g['weight_decay']),
    )
    epochs = int(g['epochs'])
    steps = sorted(int(k[len('loss_') :]) for k in g if re.fullmatch(r'loss_\d+', k))
    for step in steps:
        rates = float(g[f'lr_encoder_{step}']), float(g[f'lr_predictor_{step}'])
        # a cosine by epoch, and the predictor's constant
        cosine = 0.5 * (1 + math.cos(math.pi * step / epochs))
        assert rates == pytest.approx((float(g['base_lr']) * cosine, float(g['base_lr'])))
        for group, rate in zip(optimizer.param_groups, rates):
            group['lr'] = rate
        (loss,) = model.loss([g[f'x{i}_{step}'][:, :, None, None] for i in (1, 2)]).values()
        close(loss, g[f'loss_{step}'])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            names = {name for name, p in model.named_parameters() if p.grad is not None}
            assert names == grads.keys()
            for name, grad in grads.items():
                close(model.get_parameter(name).grad, grad, name)
        optimizer.step()
    state = model.state_dict()
    assert state.keys() == after.keys() and len(steps) > 1
    for name, value in after.items():
        close(state[name], value, name)


def test_equals_mmpretrain():
    """The algorithm is mmpretrain's: state dict, losses and gradients."""
    from mmpretrain.registry import MODELS as MMPRETRAIN

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = MMPRETRAIN.build(config())
    ours = MODELS.build(config(channels_last=False))
    assert type(ours) is SimSiam and type(theirs) is not SimSiam and isinstance(ours, type(theirs))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    for model in (theirs, ours):
        model.result = model(views, mode='loss')
        sum(model.result.values()).backward()
    assert ours.result.keys() == theirs.result.keys()
    close(ours.result['loss'], theirs.result['loss'])
    for name, p in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name).grad, p.grad), name


def test_files_of_the_authors(tmp_path):
    """The complete algorithm continues from the authors' file: the projector's outputs are equal,
    though its last layer has a bias there."""
    neck, head = networks(512, 32, 32, 8, bias=True)
    theirs = MODELS.build(config(neck=neck, head=head)).eval()
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    state = {}
    for name, value in theirs.state_dict().items():
        if name.startswith('backbone.'):
            state[f'module.encoder.{name[len("backbone.") :]}'] = value
            continue
        start = 'encoder.fc' if name.startswith('neck.') else 'predictor'
        kind, number, rest = re.search(r'(fc|bn)(\d)\.(\w+)$', name).groups()
        state[f'module.{start}.{3 * int(number) + (kind == "bn")}.{rest}'] = value
    torch.save(dict(epoch=100, arch='resnet18', state_dict=state), tmp_path / 'file.pth.tar')
    found = recognise(read_checkpoint(tmp_path / 'file.pth.tar'))
    assert (found.source, found.algorithm_type) == ('SimSiam', 'SimSiam')
    assert found.backbone.keys() == theirs.backbone.state_dict().keys()
    ours = MODELS.build(config()).eval()
    ours.load_state_dict(ours.as_new_run(found.algorithm), strict=True)
    maps = theirs.backbone(torch.randn(4, 3, 64, 64))
    assert neck['with_last_bias']
    z = theirs.neck(maps)[0]
    close(ours.neck(maps)[0], z)
    close(ours.head.predictor((z,))[0], theirs.head.predictor((z,))[0])


def test_no_gradient_reaches_the_target():
    """What the projections get is the predictor's gradient alone."""
    model = MODELS.build(config())
    targets = []
    loss_module = model.head.loss_module

    def watch(prediction, target):
        targets.append((prediction.requires_grad, target.requires_grad))
        return loss_module(prediction, target)

    model.head.loss_module = Called(watch)
    model.loss([torch.randn(2, 3, 64, 64)] * 2)
    assert targets == [(True, False)] * 2


class Called(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_views_change_places():
    model = MODELS.build(config())
    a, b = torch.randn(2, 4, 3, 64, 64)
    close(model.loss([a, b])['loss'], model.loss([b, a])['loss'])


def test_another_backbone_builds_and_steps():
    backbone = dict(type='mmpretrain.ConvNeXt', arch='tiny', gap_before_final_norm=False)
    model = MODELS.build(config(backbone=backbone, neck=networks(768, 32, 32, 8)[0]))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = model([torch.randn(2, 3, 64, 64) for _ in range(2)], mode='loss')
    sum(losses.values()).backward()
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_learns():
    """Some steps on one batch bring the loss near its minimum, -1."""
    torch.manual_seed(0)
    model = MODELS.build(config())
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    images = torch.randn(8, 3, 32, 32)
    history = []
    for _ in range(10):
        (loss,) = model.loss([images + 0.1 * torch.randn_like(images) for _ in range(2)]).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert abs(history[0]) < 0.5 and history[-1] < -0.5


def test_product_is_the_backbone():
    model = MODELS.build(config())
    assert model.get_product() is model.backbone
    image = torch.randn(1, 3, 64, 64)
    model.eval()
    assert torch.equal(model(image, mode='tensor')[-1], model.backbone(image)[-1])


def test_wrong_batches_say_so():
    model = MODELS.build(config())
    image = torch.randn(4, 3, 64, 64)
    for inputs in (image, [image], [image] * 3):
        with pytest.raises(InputError, match='SimSiam needs 2 views of every image, got'):
            model(inputs, mode='loss')
    with pytest.raises(InputError, match='of equal N'):
        model.loss([image, image[:2]])


def test_unknown_arguments_name_the_algorithm():
    with pytest.raises(TypeError, match='SimSiam got an unexpected argument: foo'):
        MODELS.build(config(foo=1))


@pytest.mark.parametrize(
    'path, epochs, images',
    [
        ('configs/simsiam_r50_in1k.py', 100, ('data/imagenet', 'train')),
        (
            'configs/simsiam/simsiam_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, ('data/imagenet', 'train')),
        ),
        ('configs/simsiam_r50_coco.py', 800, ('data/coco', 'train2017')),
    ],
)
def test_simsiam_recipe(path, epochs, images):
    """As mmpretrain's, whose losses equal the published code's, at the published learning rate."""
    config = load_recipe(path)
    assert config.train_cfg.max_epochs == epochs
    dataset = config.train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix) == images
    theirs = Config.fromfile(
        str(
            Path(mmpretrain.__file__).parent
            / '.mim/configs/simsiam/simsiam_resnet50_8xb32-coslr-200e_in1k.py'
        )
    )
    for part in ('backbone', 'neck', 'head'):
        assert _without_scopes(config.model[part]) == theirs.model[part], part
    assert config.optim_wrapper == theirs.optim_wrapper
    (hook,) = theirs.custom_hooks
    ours = _without_scopes(config.default_hooks.predictor_lr)
    assert dict(ours, priority='HIGH') == hook and hook.lr == 0.05


def _without_scopes(config):
    """``mmpretrain.ResNet`` → ``ResNet``."""
    plain = {k: _without_scopes(v) if isinstance(v, dict) else v for k, v in config.items()}
    return {k: v.split('.')[-1] if k == 'type' else v for k, v in plain.items()}


def test_simsiams_predictor_keeps_its_learning_rate():
    config = load_recipe('configs/simsiam_r50_coco.py')
    model = nn.ModuleDict(dict(neck=nn.Linear(2, 2)))
    model.head = nn.ModuleDict(dict(predictor=nn.Linear(2, 2)))
    with DefaultScope.overwrite_default_scope('mmdense'):
        optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
        hook = HOOKS.build(config.default_hooks.predictor_lr)
    for group in optimizer.param_groups:
        group['lr'] = 0.01  # by a schedule
    hook.before_train_epoch(SimpleNamespace(optim_wrapper=SimpleNamespace(optimizer=optimizer)))
    rates = {id(group['params'][0]): group['lr'] for group in optimizer.param_groups}
    assert {rates[id(p)] for p in model.neck.parameters()} == {0.01}
    assert {rates[id(p)] for p in model.head.parameters()} == {0.05}
