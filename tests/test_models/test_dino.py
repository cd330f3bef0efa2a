# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import CosineAnnealingParamScheduler, build_optim_wrapper
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names, main
from torch import nn
from torch.nn.functional import log_softmax, softmax

from mmdense.apis import planning
from mmdense.checkpoints import SelfSupPretrained, recognise
from mmdense.engine import ClipEachGradientHook, FreezeLayersHook, WarmupCosineLR
from mmdense.models import (
    DINO,
    DINONeck,
    DINOViT,
    RunFacts,
    WeightNormLinear,
    multi_crop_distillation,
)
from mmdense.models.layers import MomentumEncoder
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

PROTOTYPES = 12


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        return dict(neck=neck(64), teacher_temperature=0.07, total_steps=50)

    return Tiny(
        algorithm='DINO',
        family='momentum',
        parts=parts,
        recipe='dino_r50_coco',
        options=[
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
            'train_dataloader.dataset.pipeline.1.transforms.2.0.scale=32',
            'model.neck.in_channels=512',
            # fewer, or a higher lr, and features that are alike at first stay so
            'model.neck.hid_channels=512',
            'model.neck.num_prototypes=4096',
            'optim_wrapper.optimizer.lr=0.05',
        ],
        health=health_names(global_=PAIRS, prototypes=('used', 'dead')),
        losses=['loss'],
        product='encoder_k.module.backbone',
        passes=2,  # crops of one size are one batch
        # the mean of the teacher's scores
        calls=lambda image, patches, seen: [('all_reduce', PROTOTYPES * 4)],
    )


def neck(in_channels, prototypes=PROTOTYPES, **changes):
    """Return the config of a small projection head."""
    sizes = dict(in_channels=in_channels, hid_channels=16, out_channels=8)
    return dict(type='DINONeck', num_prototypes=prototypes, **sizes, **changes)


def config(num_crops=(2, 3), **changes):
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    cfg = dict(type='DINO', backbone=backbone, neck=neck(64), num_crops=num_crops, total_steps=100)
    return dict(cfg, **changes)


ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)


def vit_config(**changes):
    backbone = dict(type='DINOViT', arch=ARCH, img_size=64, drop_path_rate=0.5)
    return config(backbone=backbone, neck=neck(32), **changes)


def views(n=4, num_crops=(2, 3)):
    sizes = [64] * num_crops[0] + [32] * sum(num_crops[1:])
    return [torch.randn(n, 3, size, size) for size in sizes]


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(autouse=True)
def epoch():
    """Set the epoch of a run, as MMEngine's runner does; afterwards there is no run."""

    def at(number):
        hub.update_info('epoch', number)

    hub = MessageHub.get_current_instance()
    at(0)
    yield at
    at(0)


# ---------------------------------------------------------------- schedules and steps


def test_golden_schedules(golden, epoch):
    g = golden('scfs_schedules')
    iters, total = int(g['iters_per_epoch']), len(g['lr'])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=float(g['base_lr']))
    schedule = WarmupCosineLR(
        optimizer,
        end=total,
        warmup=int(g['warmup_epochs']) * iters,
        start_factor=0.0,
        eta_min=float(g['min_lr']),
        reach_early=True,
        by_epoch=False,
    )
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(g['lr'].tolist(), rel=1e-5, abs=1e-9)

    model = MODELS.build(
        config(
            base_momentum=1 - float(g['momentum_start']),
            teacher_temperature=float(g['teacher_temp']),
            warmup_teacher_temperature=float(g['warmup_teacher_temp']),
            warmup_teacher_temperature_epochs=int(g['warmup_teacher_temp_epochs']),
            total_steps=total,
        )
    )
    for step, momentum in enumerate(g['momentum'].tolist()):
        model.encoder_k.steps.fill_(step)
        model.encoder_k._steps = None
        assert 1 - model.encoder_k.current_momentum() == pytest.approx(momentum, abs=1e-7)
    for number, temperature in enumerate(g['teacher_temperature'].tolist()):
        epoch(number)
        assert model.current_temperature() == pytest.approx(temperature, rel=1e-6)


class Parts(nn.Module):
    """The parameters of the optimizer's golden."""

    def __init__(self, state):
        super().__init__()
        rows, columns = state['fc.weight'].shape
        self.fc, self.bn = nn.Linear(columns, rows), nn.BatchNorm1d(rows)
        self.last_layer = WeightNormLinear(*reversed(state['last_layer.weight_v'].shape))


def part_of(g, prefix):
    """Return the entries of a golden whose names begin so, without that beginning and without the
    lengths, which are 1."""
    found = {name[len(prefix) :]: x for name, x in g.items() if name.startswith(prefix)}
    assert (found.pop('last_layer.weight_g', torch.ones(1)) == 1).all()
    return found


def test_golden_optimizer(golden):
    """Steps that cross the end of the first epoch, with the two hooks and the recipe's decay; and
    the teacher after each."""
    g = golden('scfs_optimizer')
    init = part_of(g, 'init/')
    model = Parts(init)
    assert not model.load_state_dict(init, strict=False).unexpected_keys
    wrapper = load_recipe('configs/scfs_r50_in1k.py').optim_wrapper
    wrapper.optimizer.update(
        lr=1.0, momentum=float(g['sgd_momentum']), weight_decay=float(g['weight_decay'])
    )
    wrapper = build_optim_wrapper(model, wrapper)
    teacher = MomentumEncoder(model, 0.5)
    teacher.steps.fill_(1)  # the first update is no copy in the published code
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, epoch=0)
    epochs = int(g['freeze_last_layer_epochs'])
    hooks = [ClipEachGradientHook(float(g['clip'])), FreezeLayersHook(['last_layer'], epochs)]
    for hook in hooks:
        hook.before_train(runner)
    clipped = 0
    for step in range(int(g['n_steps'])):
        runner.epoch = step // int(g['iters_per_epoch'])
        for group in wrapper.param_groups:
            group['lr'] = float(g['lr'][step])
        for name, grad in part_of(g, f's{step}_grad/').items():
            model.get_parameter(name).grad = grad.clone()
            clipped += bool(grad.norm() > hooks[0].max_norm)
        wrapper.step()
        for name, value in part_of(g, f's{step}_after/').items():
            close(model.get_parameter(name), value, f'{name} {step}')
        alpha = 1 - float(g['ema_momentum'][step])
        teacher.current_momentum = lambda alpha=alpha: alpha
        teacher.update(model)
        for name, value in part_of(g, f's{step}_teacher/').items():
            close(teacher.module.get_parameter(name), value, f'{name} {step}')
    assert clipped and 0 < epochs * int(g['iters_per_epoch']) < int(g['n_steps'])
    for hook in hooks:
        hook.after_train(runner)
    assert 'guarded' not in str(wrapper.optimizer.step)


def test_layers_to_freeze_must_be_there():
    model = MODELS.build(config())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = SimpleNamespace(model=model, epoch=0, optim_wrapper=SimpleNamespace())
    runner.optim_wrapper.optimizer = optimizer
    with pytest.raises(InputError, match="the model has no trained layer named 'last'"):
        FreezeLayersHook('last').before_train(runner)
    for epochs in (-1, 1.5):
        with pytest.raises(InputError, match='epochs must be a whole number of at least 0'):
            FreezeLayersHook('last_layer', epochs)
    with pytest.raises(InputError, match='max_norm must be a number above 0'):
        ClipEachGradientHook(0)


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='PyTorch scales on GPUs alone')
def test_gradients_are_clipped_when_they_are_unscaled():
    """A gradient scaler's factor is not part of their norms."""
    weights = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(9))]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    runner = SimpleNamespace(optim_wrapper=SimpleNamespace(optimizer=optimizer))
    hook = ClipEachGradientHook(3.0)
    hook.before_train(runner)
    scaler.scale(weights[0].sum() + 5 * weights[1].sum()).backward()
    scaler.step(optimizer)
    close(weights[0].data, -torch.ones(4))  # of norm 2
    close(weights[1].data, -torch.ones(9))  # of norm 15


def test_weight_decay_of_a_vit_rises_but_not_that_of_biases():
    recipe = load_recipe('configs/dino_vit-small_in1k.py')
    schedule = recipe.param_scheduler[1]
    assert schedule.type == 'CosineAnnealingParamScheduler' and schedule.convert_to_iter_based
    wrapper = build_optim_wrapper(nn.Linear(2, 3), recipe.optim_wrapper)
    decay = CosineAnnealingParamScheduler(
        wrapper, schedule.param_name, T_max=20, eta_min_ratio=schedule.eta_min_ratio, by_epoch=False
    )
    for step in range(20):
        found = {group['weight_decay'] for group in wrapper.param_groups}
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 20)) / 2
        assert sorted(found) == [0, pytest.approx(expected, rel=1e-5)]
        wrapper.optimizer.step()
        decay.step()


# ---------------------------------------------------------------- loss


def distillation(student, teacher, center, t_s, t_t):
    """Return H(t, s) of https://arxiv.org/abs/2104.14294, section 3.1."""
    target = softmax((teacher - center) / t_t, dim=1)
    return -(target * log_softmax(student / t_s, dim=1)).sum(1).mean()


@pytest.mark.parametrize('num_crops', [(2, 3), (2,), (3, 1), (1, 2)])
def test_loss_by_the_definition(num_crops, epoch):
    """Loss, gradients and center of three steps, from the scores of both networks."""
    warm = dict(teacher_temperature=0.07, warmup_teacher_temperature_epochs=3)
    model, scores, teacher_scores = MODELS.build(config(num_crops, **warm)), [], []
    model.neck.register_forward_hook(lambda *args: scores.append(args[2][1]))
    teacher = model.encoder_k.module['neck']
    teacher.register_forward_hook(lambda *args: teacher_scores.append(args[2][1]))
    center, number = torch.zeros(PROTOTYPES), sum(num_crops)
    for step, temperature in enumerate((0.04, 0.055, 0.07)):
        epoch(step)
        (loss,) = model(views(4, num_crops), mode='loss').values()
        (grad,) = torch.autograd.grad(loss, scores[-1], retain_graph=True)
        student = scores.pop().detach().requires_grad_()
        targets = teacher_scores.pop().chunk(num_crops[0])
        terms = [
            distillation(s, t, center, 0.1, temperature)
            for g, t in enumerate(targets)
            for v, s in enumerate(student.chunk(number))
            if v != g
        ]
        assert len(terms) == num_crops[0] * (number - 1)
        expected = sum(terms) / len(terms)
        close(loss, expected)
        close(grad, torch.autograd.grad(expected, student)[0])
        center = 0.9 * center + 0.1 * torch.cat(targets).mean(0)
        close(model.center.value, center)
    assert center.any()


def test_loss_in_half_precision():
    student, teacher = torch.randn(4, 3, 7, requires_grad=True), torch.randn(2, 3, 7)
    expected = multi_crop_distillation(student.detach(), teacher)
    with torch.autocast('cpu', torch.bfloat16):
        half = multi_crop_distillation(student.detach().bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32 and half == pytest.approx(expected.item(), rel=0.02)
    student = student.double().detach().requires_grad_()
    assert torch.autograd.gradcheck(multi_crop_distillation, (student, teacher.double()))


def test_crops_of_one_size_are_one_batch():
    """BatchNorm of the student sees 2N and 3N images, that of the teacher 2N."""
    model, sizes = MODELS.build(config()), []
    for backbone in (model.backbone, model.encoder_k.module['backbone']):
        backbone.bn1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model(views(4), mode='loss')
    assert sizes == [8, 12, 8]


@pytest.mark.parametrize('learned', [False, True])
def test_prototypes_are_compared_by_their_directions(learned):
    """As PyTorch's weight_norm; and unlike a module with that, ours can be copied."""
    layer = WeightNormLinear(5, 7, learned)
    plain = nn.utils.weight_norm(nn.Linear(5, 7, bias=False))
    lengths = torch.rand(7, 1) + 0.5 if learned else torch.ones(7, 1)
    with torch.no_grad():
        plain.weight_v.copy_(layer.weight_v), plain.weight_g.copy_(lengths)
        if learned:
            layer.weight_g.copy_(lengths)
    x = torch.randn(3, 5)
    again = copy.deepcopy(layer)
    for one in (layer, again):
        close(one(x), plain(x))
        assert len(one.state_dict()) == 1 + learned
    for name, p in again.named_parameters():
        plain.zero_grad()
        again(x).square().sum().backward()
        plain(x).square().sum().backward()
        close(p.grad, getattr(plain, name).grad, name)
        again.zero_grad()


def test_probe_counts_the_prototypes_of_the_teacher():
    model, seen = MODELS.build(config()), {}
    model.health_monitor = lambda features: seen.update(
        {k: v() if callable(v) else v for k, v in features.items()}
    )
    model(views(), mode='loss')
    assert seen['prototypes'].shape == (PROTOTYPES,) and seen['prototypes'].sum() == 2 * 4
    for z in seen['global_']:
        close(z.norm(dim=1), torch.ones(4))


def test_learns():
    """Some steps on a batch of coloured noise bring the loss below chance."""
    torch.manual_seed(0)
    model = MODELS.build(config(base_momentum=0.1))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    colours, history = torch.randn(8, 3, 1, 1), []
    for _ in range(30):
        batch = [0.2 * x + colours for x in views(8)]
        (loss,) = model(batch, mode='loss').values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < math.log(PROTOTYPES) - 0.5, history


def test_wrong_arguments_say_so():
    for name in ('student_temperature', 'teacher_temperature', 'warmup_teacher_temperature'):
        with pytest.raises(InputError, match=f'{name} must be a number above 0'):
            MODELS.build(config(**{name: 0}))
    for changes in (dict(num_crops=[1]), dict(neck=None)):
        with pytest.raises(InputError, match='DINO needs a neck and two crops or more'):
            MODELS.build(config(**changes))
    with pytest.raises(InputError, match='DINO needs 5 views of every image, got 2'):
        MODELS.build(config())(views()[:2], mode='loss')
    with pytest.raises(TypeError, match='DINO got an unexpected argument: foo'):
        MODELS.build(config(foo=1))
    with pytest.raises(InputError, match='num_prototypes must be a whole number'):
        DINONeck(8, num_prototypes=0)


# ---------------------------------------------------------------- vision transformers


def test_vit_is_initialized_as_published():
    vit = MODELS.build(dict(type='DINOViT', arch=ARCH, img_size=64))
    vit.init_weights()
    for weight in (vit.layers[0].attn.qkv.weight, vit.layers[1].ffn.layers[1].weight):
        assert 0.015 < weight.std() < 0.025
    for tensor in (vit.cls_token, vit.pos_embed):
        assert 0.01 < tensor.std() < 0.03
    assert not vit.layers[0].attn.qkv.bias.any() and vit.pos_embed.requires_grad
    bound = (3 * 16**2) ** -0.5
    assert 0.9 * bound < vit.patch_embed.projection.weight.abs().max() <= bound


def test_a_vit_gives_maps_but_in_training():
    """Crops of both sizes give class tokens; evaluation, figures and transfer need maps."""
    model = MODELS.build(vit_config())
    model.init_weights()
    for size in (64, 32):
        (token,) = model.backbone(torch.randn(2, 3, size, size))
        assert token.shape == (2, 32)
    model.eval()
    (map_,) = model(torch.randn(2, 3, 64, 96), mode='tensor')
    assert map_.shape == (2, 32, 4, 6)
    cfg = dict(type='DINOViT', arch=ARCH, img_size=64, drop_path_rate=0.1)
    plain = MODELS.build(DINOViT.transfer_config(cfg))
    plain.load_state_dict(model.get_product().state_dict(), strict=True)
    plain.eval()  # returns None
    image = torch.randn(1, 3, 64, 64)
    close(model(image, mode='tensor')[-1], plain(image)[-1])


def test_the_teacher_drops_no_paths():
    """Its class tokens do not change from one pass to the next; the student's do."""
    model = MODELS.build(vit_config())
    model.init_weights()
    image = torch.randn(8, 3, 64, 64)
    student, teacher = model.backbone, model.encoder_k.module['backbone']
    assert student.training and teacher.training
    assert not torch.equal(student(image)[0], student(image)[0])
    assert torch.equal(teacher(image)[0], teacher(image)[0])


def test_a_vit_trains():
    torch.manual_seed(0)
    model = MODELS.build(vit_config())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.init_weights()
    model(views(), mode='loss')['loss'].backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == trained  # or DistributedDataParallel would stop


def test_a_vit_of_twelve_heads_is_refused(tmp_path):
    """The shapes of MoCo v3's ViT-S are the same; its fixed positions tell them apart."""
    other = MODELS.build(dict(type='MoCoV3ViT', arch='mocov3-small'))
    other.init_weights()
    file = str(tmp_path / 'x.pth')
    torch.save(other.state_dict(), file)
    init_cfg = dict(type='mmdense.SelfSupPretrained', checkpoint=file)
    own = MODELS.build(dict(type='DINOViT', arch='deit-small', init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match="does not fit DINOViT.*MoCo v3's ViT-S with 12 head"):
        own.init_weights()


# ---------------------------------------------------------------- the authors' files


def timm_name(name):
    """Return the authors' name of a tensor of a ViT; that of a ResNet stays."""
    for ours, theirs in (
        ('backbone.ln1.', 'backbone.norm.'),
        ('patch_embed.projection', 'patch_embed.proj'),
        ('ffn.layers.0.0', 'mlp.fc1'),
        ('ffn.layers.1', 'mlp.fc2'),
        ('.ln1.', '.norm1.'),
        ('.ln2.', '.norm2.'),
    ):
        name = name.replace(ours, theirs)
    return name.replace('backbone.layers.', 'backbone.blocks.')


def authors_file(model, wrapped=('module.', 'module.'), length=1.0):
    """Return a file as the published code writes it."""
    state = model.state_dict()
    roles = dict(student={}, teacher={})
    for name, value in state.items():
        role, rest = 'student', name
        if name.startswith('encoder_k.module.'):
            role, rest = 'teacher', name[len('encoder_k.module.') :]
        if rest.startswith(('backbone.', 'neck.')):
            rest = timm_name(rest.replace('neck.', 'head.'))
            roles[role][wrapped[role == 'teacher'] + rest] = value.clone()
            if rest.endswith('weight_v'):
                lengths = torch.full((len(value), 1), length)
                roles[role][wrapped[role == 'teacher'] + rest[:-1] + 'g'] = lengths
    center = state['center.value'][None].clone()
    more = dict(optimizer={}, epoch=3, fp16_scaler=dict(scale=1.0))
    return dict(roles, dino_loss=dict(center=center), **more)


def trained_model(cfg):
    model = MODELS.build(cfg)
    model.init_weights()
    for part in (model.encoder_k.module, model.center):
        for value in part.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * torch.randn_like(value))
    return model


@pytest.mark.parametrize(
    'cfg, wrapped',
    [
        (config, ('module.', 'module.')),
        (config, ('', '')),
        (vit_config, ('module.', '')),
    ],
    ids=['resnet', 'resnet-of-one-process', 'vit'],
)
def test_files_of_the_authors(cfg, wrapped, tmp_path):
    """The complete algorithm continues from the authors' file; the backbone is the teacher's."""
    model = trained_model(cfg())
    file = authors_file(model, wrapped)
    torch.save(file, tmp_path / 'x.pth')
    found = recognise(file)
    assert (found.writer, found.algorithm_type) == ('DINO (teacher)', 'DINO')
    teacher = model.get_product().state_dict()
    assert found.backbone.keys() == teacher.keys()
    assert all(torch.equal(found.backbone[k], teacher[k]) for k in teacher)
    other = MODELS.build(cfg())
    SelfSupPretrained(str(tmp_path / 'x.pth'))(other)
    for name, value in other.state_dict().items():
        if name != 'encoder_k.steps':
            assert torch.equal(value, model.state_dict()[name]), name
    assert int(other.encoder_k.steps) == 1


def test_a_teacher_alone(tmp_path):
    """What others cut out of such a file."""
    model = trained_model(vit_config())
    found = recognise(dict(teacher=authors_file(model, ('', ''))['teacher']))
    assert found.writer == 'DINO (teacher)'
    teacher = model.get_product().state_dict()
    assert found.backbone.keys() == teacher.keys()
    assert all(torch.equal(found.backbone[k], teacher[k]) for k in teacher)


def test_learned_lengths_of_prototypes(tmp_path):
    """They are part of the file and of the model; lengths of 1 fill a model that learns them."""
    cfg = config(neck=neck(64, norm_last_layer=False))
    model = trained_model(config())
    for length in (1.0, 1.5):
        path = str(tmp_path / f'{length}.pth')
        torch.save(authors_file(model, length=length), path)
        other = MODELS.build(cfg)
        SelfSupPretrained(path)(other)
        for part in (other.neck, other.encoder_k.module['neck']):
            assert (part.last_layer.weight_g == length).all()
    with pytest.raises(CheckpointError, match='weight_g'):
        SelfSupPretrained(path)(MODELS.build(config()))


# ---------------------------------------------------------------- recipes


RECIPES = {
    'resnet50_8xb64-coslr-100e_in1k': (100, 512, 0.14, 0.14, (0.04, 0), 1e-6),
    'resnet50_8xb32-coslr-200e_in1k': (200, 256, 0.25, 0.25, (0.07, 50), 0.0048),
    'resnet50_8xb32-coslr-200e_coco': (200, 256, 0.25, 0.25, (0.07, 50), 0.0048),
    'vit-small-p16_8xb64-coslr-100e_in1k': (100, 512, 0.4, 0.4, (0.04, 0), 1e-6),
    'vit-small-p16_16xb64-coslr-300e_in1k': (300, 1024, 0.4, 0.4, (0.07, 30), 1e-6),
}
LRS = {'resnet50_8xb64': 0.03, 'resnet50_8xb32': 0.1, 'vit-small': 5e-4}


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
    """As the readme of the authors' repository and the defaults of its code say; of 200 epochs as
    SCFS's."""
    epochs, batch, low, high, (temperature, warm), end = RECIPES[name]
    recipe = load_recipe(f'configs/dino/dino_{name}.py')
    assert (recipe.train_cfg.max_epochs, recipe.auto_scale_lr.base_batch_size) == (epochs, batch)
    optimizer, vit = recipe.optim_wrapper.optimizer, 'vit' in name
    lr = 0.3 if 'coco' in name else next(v for k, v in LRS.items() if name.startswith(k))
    assert optimizer.lr == pytest.approx(lr * batch / 256)
    assert recipe.optim_wrapper.paramwise_cfg == dict(flat_decay_mult=0.0)
    assert (optimizer.type, optimizer.weight_decay) == (('AdamW', 0.04) if vit else ('SGD', 1e-4))
    assert len(recipe.param_scheduler) == 1 + vit
    schedule = recipe.param_scheduler[0]
    values = [schedule[k] for k in ('warmup', 'start_factor', 'eta_min', 'reach_early')]
    assert values == [10, 0, end, True]
    check_crops(recipe, low, high)
    check_model(recipe.model, temperature, warm)
    assert recipe.model.neck.norm_last_layer == ('300e' not in name)
    assert recipe.model.backbone.get('drop_path_rate', 0) == (0.1 if vit else 0)


def check_crops(recipe, low, high):
    multi = recipe.train_dataloader.dataset.pipeline[1]
    assert multi.num_views == [1, 1, 8]
    ranges = [(224, (low, 1.0)), (224, (low, 1.0)), (96, (0.05, high))]
    for pipeline, (size, shown), blurred in zip(multi.transforms, ranges, (1.0, 0.1, 0.5)):
        crop, flip, jitter, grey, blur, *more = pipeline
        assert (crop.scale, crop.crop_ratio_range, crop.interpolation) == (size, shown, 'bicubic')
        assert (flip.prob, grey.prob, blur.prob, blur.sigma) == (0.5, 0.2, blurred, (0.1, 2.0))
        strength = [jitter[k] for k in ('brightness', 'contrast', 'saturation', 'hue', 'prob')]
        assert strength == [0.4, 0.4, 0.2, 0.1, 0.8]
        expected = [dict(type='Solarize', thr=128, prob=0.2)] if blurred == 0.1 else []
        assert more == expected


def check_model(model, temperature, warm):
    found = model.teacher_temperature, model.get('warmup_teacher_temperature_epochs', 0)
    assert found == (temperature, warm)
    assert model.get('warmup_teacher_temperature', 0.04) == 0.04
    assert (model.student_temperature, model.center_momentum) == (0.1, 0.9)
    assert (model.base_momentum, model.neck.num_prototypes) == (0.004, 65536)
    assert (model.neck.hid_channels, model.neck.out_channels) == (2048, 256)


def test_every_recipe_clips_and_freezes():
    for name in RECIPES:
        hooks = load_recipe(f'configs/dino/dino_{name}.py').default_hooks
        assert hooks.clip_each == dict(type='ClipEachGradientHook', max_norm=3.0)
        expected = dict(type='FreezeLayersHook', layers=['last_layer'], epochs=1)
        assert hooks.freeze_last_layer == expected


# ---------------------------------------------------------------- few images


@pytest.mark.parametrize(
    'images, init, expected',
    [
        # epochs that prototypes stay, epochs of the warm-up; of a checkpoint its prototypes first
        (24, '', (2, 125)),
        (2_000_000, '', (2, 125)),
        (5000, 'complete', (700, True, 0, 0)),
        (5000, 'lengths', (700, False, 0, 0)),
    ],
)
def test_settings_for_few_images(images, init, expected):
    """Of a run of 500 epochs."""
    shapes = {'neck.last_layer.weight_v': (700, 256)} if init else {}
    if init == 'lengths':
        shapes['neck.last_layer.weight_g'] = (700, 1)
    recipe = load_recipe('configs/dino_r50_coco.py')
    facts = RunFacts(images, 8, 500 * (images // 8), recipe, init, shapes)
    rows = DINO.small_data_rules(facts)
    values = [value for row in rows for value in row.config.values()]
    assert tuple(values) == expected
    assert all(row.reason for row in rows)


def test_the_preset_of_the_vit_is_by_the_rules():
    """What it says of itself: 2,000 images, one GPU of 24 GB, mixed precision."""
    method = planning.find_method('dino', backbone='vit-small')
    # as survey_network() finds at 224 px, which takes long
    network = planning.Network({}, 384, 43_952_256, 205_035_931, attention=True)
    machine = planning.Machine('cuda', '', 1, 24 << 30, 8, 'bfloat16')
    images = planning.Images(dict(data_root='/images', data_prefix=''), 2000, 480)
    asked = planning.Options(method='dino', backbone='vit-small')
    rows = planning.derive_settings(
        images, machine, network, method.recipe, asked, method.read_base(2000)
    )
    expected = ('train_dataloader.dataset.', 'default_hooks.pr', 'randomness.')
    amp = {'optim_wrapper.type', 'optim_wrapper.dtype', 'optim_wrapper.loss_scale'}
    changed = {key for row in rows for key in row.config if not key.startswith(expected)}
    assert changed == amp


if __name__ == '__main__':
    main(globals())
