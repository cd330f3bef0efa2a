# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import load_recipe
from tiny_algorithms import PAIRS, RANK, STD, Tiny, health_names, main
from torch import nn

from mmdense.apis.report.show import show
from mmdense.checkpoints import SelfSupPretrained, describe_product, recognise
from mmdense.models import DINONeck, StageNeck, group_distillation, multi_crop_distillation
from mmdense.models.layers import TeacherCenter
from mmdense.models.utils import search_features
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError
from mmdense.visualization import search_crops

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    prototypes, out = 12, 8

    def parts(norm):
        return dict(
            neck=dict(
                type='DINONeck',
                in_channels=64,
                hid_channels=16,
                out_channels=8,
                num_prototypes=prototypes,
            ),
            stage_neck=dict(
                type='StageNeck', mid_channels=8, hid_channels=16, out_channels=out, norm_cfg=norm
            ),
            # gradients of about 1, where rounding is small
            student_temperature=1.0,
            teacher_temperature=0.5,
            total_steps=50,
        )

    return Tiny(
        algorithm='SCFS',
        family='momentum',
        parts=parts,
        recipe='scfs_r50_coco',
        options=[
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
            'train_dataloader.dataset.pipeline.1.transforms.2.0.scale=32',
            'model.neck.in_channels=512',
            # fewer, or a higher lr, and features that are alike at first stay so
            'model.neck.hid_channels=512',
            'model.neck.num_prototypes=4096',
            'optim_wrapper.optimizer.lr=0.02',
            'model.stage_neck.mid_channels=8',
            'model.stage_neck.hid_channels=64',
            'model.stage_neck.out_channels=256',
        ],
        backbone=dict(out_indices=(1, 2, 3)),
        health=health_names(
            global_=PAIRS,
            prototypes=('used', 'dead'),
            **{f'stage_{i}': (STD, RANK) for i in (1, 2, 3)},
        ),
        losses=['loss_image', 'loss_stage_1', 'loss_stage_2', 'loss_stage_3'],
        product='encoder_k.module.backbone',
        passes=2,  # crops of one size are one batch
        # the means of the teacher's scores, of complete crops and of each stage
        calls=lambda image, patches, seen: [
            ('all_reduce', prototypes * 4),
            *[('all_reduce', out * 4)] * 3,
        ],
    )


def close(ours, theirs, name=None):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def part_of(g, prefix):
    """Return the entries of a golden whose names begin so, without that beginning."""
    return {name[len(prefix) :]: value for name, value in g.items() if name.startswith(prefix)}


def stage_neck(state, **kwargs):
    """Build the neck of a stage with the published tensors."""
    mid, channels = state['conv1.weight'].shape[:2]
    neck = StageNeck(channels, mid, len(state['mlp.0.bias']), len(state['mlp.3.bias']))
    missing, unexpected = neck.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    return neck


def dino_neck(state):
    """Build the projection head with the published tensors, whose lengths are 1."""
    hidden, channels = state['mlp.0.weight'].shape
    prototypes, out = state['last_layer.weight_v'].shape
    neck = DINONeck(channels, hidden, out, prototypes)
    state = dict(state)
    assert (state.pop('last_layer.weight_g') == 1).all()
    neck.load_state_dict(state)
    return neck


def check_gradients(module, output, g):
    (output * g['weight']).sum().backward()
    grads = part_of(g, 'grad/')
    found = {name: p.grad for name, p in module.named_parameters()}
    assert found.keys() == grads.keys()
    for name, value in grads.items():
        close(found[name], value, name)


def test_golden_projection_head(golden):
    g = golden('scfs_dino_head')
    neck, x = dino_neck(part_of(g, 'state/')), g['x'].requires_grad_()
    _, scores = neck([x])
    close(scores, g['y'])
    check_gradients(neck, scores, g)
    close(x.grad, g['grad_x'])


def test_golden_stage_neck(golden):
    g = golden('scfs_shallow_head')
    neck, x = stage_neck(part_of(g, 'state/')), g['x'].requires_grad_()
    y = neck(x)
    close(y, g['y'])
    check_gradients(neck, y, g)
    close(x.grad, g['grad_x'])
    for name, value in part_of(g, 'after/').items():
        close(neck.state_dict()[name], value, name)


def weighted(maps, attention):
    """Return maps N×C×H×W times weights L×N×H×W, (LN)×C×H×W."""
    return (attention[:, :, None] * maps).flatten(0, 1)


def test_golden_search(golden):
    g = golden('scfs_feature_search')
    number = int(g['num_images'])
    for layer in ('layer2', 'layer3', 'layer4'):
        maps = g[f'teacher_{layer}'][:number]
        attention = search_features(g[f'student_local_{layer}'], maps)
        close(attention, g[f'attention_{layer}'])
        close(weighted(maps, attention), g[f'found_{layer}'])


def test_golden_image_loss(golden):
    """Several steps, with the center of the steps before."""
    g = golden('scfs_dino_loss')
    number, crops = int(g['num_images']), 2 + int(g['num_local'])
    center = TeacherCenter(g['s0_student'].size(1))
    for step in range(int(g['n_steps'])):
        s = part_of(g, f's{step}_')
        student = s['student'].view(crops, number, -1).requires_grad_()
        teacher = s['teacher'].view(2, number, -1)
        loss = multi_crop_distillation(student, teacher, center.value, 0.1, s['temperature'].item())
        center.update(*teacher)
        close(loss, s['loss'])
        (grad,) = torch.autograd.grad(loss, student)
        close(grad.flatten(0, 1), s['grad_student'])
        close(center.value[None], s['center_after'])


def test_golden_stage_loss(golden):
    g = golden('scfs_shallow_loss')
    number = int(g['num_images'])
    center = TeacherCenter(g['s0_student_global'].size(1))
    for step in range(int(g['n_steps'])):
        s = part_of(g, f's{step}_')
        student = s['student_global'].view(2, number, -1).requires_grad_()
        local = s['student_local'].requires_grad_()
        teacher = s['teacher_global'].view(2, number, -1)
        temperature = s['temperature'].item()
        loss = multi_crop_distillation(student, teacher, center.value, 0.1, temperature)
        loss_local = group_distillation(local, s['teacher_local'], None, 0.1, temperature)
        center.update(*teacher)
        close(loss, s['loss_global'])
        close(loss_local, s['loss_local'])
        grads = torch.autograd.grad((loss + loss_local) / 2, [student, local])
        close(grads[0].flatten(0, 1), s['grad_student_global'])
        close(grads[1], s['grad_student_local'])
        close(center.value[None], s['center_after'])


class Maps(nn.Module):
    """A backbone whose maps are given, by the number of images."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.channels, self.given = channels, {}

    def forward(self, x):
        default = [x.new_zeros(len(x), channels, 2, 2) for channels in self.channels]
        return tuple(self.scale * one for one in self.given.get(len(x), default))


LAYERS = ('layer2', 'layer3', 'layer4')
CENTERS = ('center', *(f'stage_centers.{i}' for i in range(3)))


def our_name(theirs):
    """Return our name of a tensor of a network of the published code."""
    for i, layer in enumerate(LAYERS):
        theirs = theirs.replace(f'{layer}_head.', f'stage_necks.{i}.')
    return theirs.replace('head.', 'neck.')


def golden_model(g):
    """Build the networks of a golden but for the backbone, with their tensors and centers."""
    head, stage = part_of(g, 'student/head.'), part_of(g, 'student/layer2_head.')
    hidden, channels = head['mlp.0.weight'].shape
    prototypes, out = head['last_layer.weight_v'].shape
    neck = dict(
        type='DINONeck',
        in_channels=channels,
        hid_channels=hidden,
        out_channels=out,
        num_prototypes=prototypes,
    )
    stage_neck = dict(
        type='StageNeck',
        mid_channels=len(stage['conv1.weight']),
        hid_channels=len(stage['mlp.0.weight']),
        out_channels=len(stage['mlp.3.weight']),
    )
    model = MODELS.build(
        dict(
            type='SCFS',
            backbone=Maps([g[f'teacher_{layer}'].size(1) for layer in LAYERS]),
            neck=neck,
            stage_neck=stage_neck,
            num_crops=(2, int(g['num_local'])),
            teacher_temperature=g['temperature'].item(),
            total_steps=10,
        )
    )
    state = {}
    for role, prefix in (('student/', ''), ('teacher/', 'encoder_k.module.')):
        for name, value in part_of(g, role).items():
            if name.endswith('weight_g'):
                assert (value == 1).all()
            else:
                state[prefix + our_name(name)] = value
    for name, layer in zip(CENTERS, ('final', *LAYERS)):
        state[f'{name}.value'] = g[f'center_{layer}'].flatten()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all('scale' in k or 'steps' in k or 'num_batches' in k for k in missing), missing
    model.encoder_k.steps.fill_(1)
    model.encoder_k.enabled = False  # the golden's teacher is not updated
    return model


def take_golden_step(g, double=False):
    """Return the model after the step, the losses, and the student's maps with their gradients."""
    model = golden_model(g)
    if double:
        model.double()
        for center in (model.center, *model.stage_centers):
            center.update = lambda *scores: None
    number, local, maps = int(g['num_images']), int(g['num_local']), {}
    dtype = torch.float64 if double else torch.float32
    for kind, images in (('global', 2 * number), ('local', local * number)):
        maps[kind] = [g[f'student_{kind}_{layer}'].to(dtype, copy=True) for layer in LAYERS]
        model.backbone.given[images] = [one.requires_grad_() for one in maps[kind]]
    teacher = model.encoder_k.module['backbone']
    teacher.given = {2 * number: [g[f'teacher_{layer}'].to(dtype) for layer in LAYERS]}
    losses = model.loss([torch.zeros(number, 3, 1, 1, dtype=dtype)] * (2 + local))
    sum(losses.values()).backward()
    return model, losses, maps


def test_golden_step(golden):
    """Losses, gradients of maps and heads, centers, and the statistics of the teacher's norms after
    both of its passes.

    Norms over a few images amplify rounding: in the stages' heads the golden's own gradients are
    2.6e-5 from those in float64, thus 1e-4 for these; ours are 1e-5 from float64's.
    """
    g = golden('scfs_step')
    model, losses, maps = take_golden_step(g)
    assert len(losses) == 4
    close(losses['loss_image'], g['loss_final'])
    for i, layer in enumerate(LAYERS):
        expected = (g[f'loss_global_{layer}'] + g[f'loss_local_{layer}']) / 2
        close(losses[f'loss_stage_{i + 1}'], expected, layer)
    close(sum(losses.values()), g['total'])
    for kind, leaves in maps.items():
        for layer, leaf in zip(LAYERS, leaves):
            close(leaf.grad, g[f'grad_student_{kind}_{layer}'], f'{kind} {layer}')
    state, exact = model.state_dict(), take_golden_step(g, double=True)[0]
    for name, value in part_of(g, 'grad/').items():
        ours = our_name(name)
        tolerance = 1e-5 if ours.startswith('neck.') else 1e-4
        grad = model.get_parameter(ours).grad
        torch.testing.assert_close(grad, value, rtol=tolerance, atol=tolerance, msg=name)
        close(grad, exact.get_parameter(ours).grad.float(), name)
    for name, value in part_of(g, 'teacher_after/').items():
        close(state[f'encoder_k.module.{our_name(name)}'], value, name)
    for name, layer in zip(CENTERS, ('final', *LAYERS)):
        close(state[f'{name}.value'], g[f'center_after_{layer}'].flatten(), layer)


# ---------------------------------------------------------------- the definition


def config(num_crops=(2, 3), norm=None, **changes):
    neck = dict(hid_channels=16, out_channels=8, num_prototypes=12)
    stage = dict(mid_channels=8, hid_channels=16, out_channels=6, norm_cfg=norm)
    backbone = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
    cfg = dict(
        type='SCFS',
        backbone=dict(backbone, out_indices=(1, 2, 3)),
        neck=dict(type='DINONeck', in_channels=64, **neck),
        stage_neck=dict(type='StageNeck', **stage),
        num_crops=num_crops,
        total_steps=100,
    )
    return dict(cfg, **changes)


def views(n=4, num_crops=(2, 3)):
    sizes = [64] * num_crops[0] + [32] * num_crops[1]
    return [torch.randn(n, 3, size, size) for size in sizes]


def test_without_search_it_is_dino():
    """The same weights and crops: DINO's loss, gradients of its neck, and its teacher's center."""
    model = MODELS.build(config())
    cfg = config(type='DINO')
    del cfg['stage_neck']
    dino = MODELS.build(cfg)
    state = model.state_dict()
    others = {k for k in state if 'stage_' in k}
    dino.load_state_dict({k: v for k, v in state.items() if k not in others}, strict=True)
    for _ in range(2):
        batch = views()
        losses = model(batch, mode='loss')
        (expected,) = dino(batch, mode='loss').values()
        assert torch.equal(losses['loss_image'], expected)
        assert torch.equal(model.center.value, dino.center.value) and dino.center.value.any()
        losses['loss_image'].backward()
        expected.backward()
        for name, p in dino.neck.named_parameters():
            close(model.neck.get_parameter(name).grad, p.grad, name)
            p.grad = model.neck.get_parameter(name).grad = None


def test_search_by_the_definition():
    local, maps = torch.randn(6, 5, 3, 4), torch.randn(2, 5, 4, 6)
    attention = search_features(local, maps)
    assert attention.shape == (3, 2, 4, 6) and attention.min() < 0
    for i in range(3):
        for n in range(2):
            u = local[2 * i + n].mean((1, 2))
            for h, w in ((0, 0), (3, 5), (1, 2)):
                cosine = torch.cosine_similarity(u, maps[n, :, h, w], dim=0)
                close(attention[i, n, h, w], cosine)


def test_weighted_maps_are_not_written_out():
    """The neck takes maps and weights as it takes their products, statistics of its norms too."""
    neck = StageNeck(8, 4, 6, 5)
    other = copy.deepcopy(neck)
    maps, weights = torch.randn(3, 8, 4, 6), torch.randn(2, 3, 4, 6)
    y = neck(maps, weights)
    assert y.shape == (6, 5)
    close(y, other(weighted(maps, weights)))
    for name, value in other.state_dict().items():
        close(neck.state_dict()[name], value, name)
    seen = []
    neck.conv1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    neck(maps, weights)
    assert seen == [3]


def test_a_dead_map_finds_nothing():
    """Neither a crop nor an image whose features are 0 gives values that are not finite."""
    maps = torch.rand(2, 5, 4, 4)
    for local, searched in ((torch.zeros(2, 5, 2, 2), maps), (maps, torch.zeros(2, 5, 4, 4))):
        assert not search_features(local, searched).any()


def test_search_in_half_precision():
    local, maps = 300 * torch.rand(2, 64, 2, 2), 300 * torch.rand(2, 64, 4, 4)
    expected = search_features(local, maps)
    attention = search_features(local.bfloat16(), maps.bfloat16())
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, expected, rtol=0, atol=0.01)


def test_only_the_teacher_gives_targets():
    """No gradient flows through the search: the student's maps get those of the losses alone."""
    model = MODELS.build(config())
    local = torch.randn(6, 16, 4, 4, requires_grad=True)
    assert not search_features(local, torch.randn(2, 16, 8, 8, requires_grad=True)).requires_grad
    sum(model(views(), mode='loss').values()).backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith('encoder_k.') for name in used)


def test_batches_of_each_norm():
    """Student on global crops, then on local ones; teacher on global crops, then on found maps."""
    model, sizes = MODELS.build(config()), []
    necks = model.stage_necks[1], model.encoder_k.module['stage_necks'][1]
    for role, part in zip(('student', 'teacher'), necks):
        part.bn1.register_forward_pre_hook(
            lambda _, args, role=role: sizes.append((role, *args[0].shape[::3]))
        )
    model(views(), mode='loss')
    assert sizes == [('student', 8, 4), ('student', 12, 2), ('teacher', 8, 4), ('teacher', 12, 4)]


def test_one_image_keeps_its_batch():
    neck = StageNeck(8, 4, 6, 5)
    neck.eval()
    assert neck(torch.randn(1, 8, 4, 4)).shape == (1, 5)


def test_channels_are_those_of_the_backbone():
    backbone = dict(type='mmpretrain.ResNet', depth=50, stem_channels=8, base_channels=8)
    model = MODELS.build(
        config(
            backbone=dict(backbone, out_indices=(2, 3)),
            neck=dict(config()['neck'], in_channels=256),
        )
    )
    assert [part.conv1.in_channels for part in model.stage_necks] == [128, 256]
    assert list(model(views(), mode='loss')) == ['loss_image', 'loss_stage_1', 'loss_stage_2']
    assert [tuple(x.shape) for x in model.trained_maps(views()[0])] == [
        (4, 6),
        (4, 6),
        (4, 256, 2, 2),
    ]
    assert len(model.trained_parts()) == 2 * 2


def test_wrong_arguments_say_so():
    for num_crops in ((2,), (1, 4), (2, 2, 2)):
        with pytest.raises(InputError, match='num_crops must be as .2, 8.'):
            MODELS.build(config(num_crops))
    with pytest.raises(InputError, match='mid_channels must be a whole number of at least 1'):
        StageNeck(8, mid_channels=0)


# ---------------------------------------------------------------- the authors' files


def test_files_of_the_authors(tmp_path):
    """Names of the published code; the teacher's backbone is kept, and training continues."""
    model = MODELS.build(config())
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * torch.randn_like(value))
    file = dict(student={}, teacher={}, optimizer={}, epoch=2, arch='resnet50')
    for name, value in model.state_dict().items():
        role, rest = 'student', name
        if name.startswith('encoder_k.module.'):
            role, rest = 'teacher', name[len('encoder_k.module.') :]
        if rest.startswith(('backbone.', 'neck.', 'stage_necks.')):
            for i, layer in enumerate(LAYERS):
                rest = rest.replace(f'stage_necks.{i}.', f'{layer}_head.')
            rest = rest.replace('backbone.', 'backbone.model.').replace('neck.', 'head.')
            file[role][f'module.{rest}'] = value.clone()
            if rest.endswith('weight_v'):
                file[role][f'module.{rest[:-1]}g'] = torch.ones(len(value), 1)
    for name, loss in zip(CENTERS, ('fn', 'l2_fn', 'l3_fn', 'l4_fn')):
        center = model.state_dict()[f'{name}.value'][None]
        file[f'dino_loss_{loss}'] = dict(center=center.clone())
    assert 'module.layer3_head.mlp.4.running_mean' in file['teacher']
    torch.save(file, tmp_path / 'x.pth')
    found = recognise(file)
    assert (found.writer, found.algorithm_type) == ('SCFS (teacher)', 'SCFS')
    teacher = model.get_product().state_dict()
    assert found.backbone.keys() == teacher.keys()
    assert all(torch.equal(found.backbone[k], teacher[k]) for k in teacher)
    other = MODELS.build(config())
    SelfSupPretrained(str(tmp_path / 'x.pth'))(other)
    for name, value in other.state_dict().items():
        if name != 'encoder_k.steps':
            assert torch.equal(value, model.state_dict()[name]), name


# ---------------------------------------------------------------- recipes


RECIPES = {
    '8xb32-coslr-200e_in1k': (200, 256, 0.1),
    '8xb128-coslr-800e_in1k': (800, 1024, 0.4),
    '8xb32-coslr-200e_coco': (200, 256, 0.3),
}


@pytest.mark.parametrize('name', RECIPES)
def test_recipe(name):
    """As the readme of the authors' repository says; on COCO at the lr of a comment of its code."""
    epochs, batch, lr = RECIPES[name]
    recipe = load_recipe(f'configs/scfs/scfs_resnet50_{name}.py')
    assert (recipe.train_cfg.max_epochs, recipe.auto_scale_lr.base_batch_size) == (epochs, batch)
    optimizer = dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4)
    assert recipe.optim_wrapper.optimizer == optimizer
    assert recipe.optim_wrapper.paramwise_cfg == dict(flat_decay_mult=0.0)
    (schedule,) = recipe.param_scheduler
    values = [schedule[k] for k in ('warmup', 'start_factor', 'eta_min', 'reach_early')]
    assert values == [10, 0, 0.0048, True]
    model = recipe.model
    assert (model.teacher_temperature, model.warmup_teacher_temperature) == (0.07, 0.04)
    assert model.warmup_teacher_temperature_epochs == 50 and model.base_momentum == 0.004
    assert model.neck.num_prototypes == 65536 and model.backbone.out_indices == (1, 2, 3)
    widths = [model.stage_neck[f'{kind}_channels'] for kind in ('mid', 'hid', 'out')]
    assert widths == [256, 2048, 256]
    for part in (model.backbone, model.stage_neck):
        assert part.norm_cfg == dict(type='SyncBN')
    multi = recipe.train_dataloader.dataset.pipeline[1]
    shown = [steps[0].crop_ratio_range for steps in multi.transforms]
    assert multi.num_views == [1, 1, 8] and shown == [(0.25, 1.0), (0.25, 1.0), (0.05, 0.25)]
    hooks = recipe.default_hooks
    assert hooks.clip_each.max_norm == 3.0 and hooks.freeze_last_layer.epochs == 1


# ---------------------------------------------------------------- mmdense show


def test_show_draws_where_crops_are_found(images, tmp_path):
    cfg = load_recipe('configs/scfs_r50_coco.py')
    cfg.model = config()
    model = MODELS.build(cfg.model)
    path = str(tmp_path / 'epoch_1.pth')
    meta = dict(cfg=cfg.pretty_text, mmdense=describe_product(model))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    files = show(path, [images], str(tmp_path / 'out'), number=2, size=128)
    (picture,) = [name for name in files if name.endswith('search.png')]
    assert min(Image.open(picture).size) > 300
    html = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
    assert 'Where crops are found' in html and 'But for the search, each' in html


def test_crops_are_found_where_they_look_alike():
    """By a network whose features are the colours: in an image of two colours, the crop's own."""

    class Colours:
        @staticmethod
        def search(crops, images):
            return [search_features(crops, images)]

    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48, 0], image[:, 48:, 2] = 255, 255
    preprocessor = lambda data: dict(inputs=data['inputs'].float())  # noqa: E731
    (one,) = search_crops(Colours(), preprocessor, [image], seed=1)
    x0, y0, x1, y1 = one.box
    assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and one.crop.shape == (32, 32, 3)
    left = float(np.clip(0.5 - x0, 0, x1 - x0) / (x1 - x0))  # the share of the crop
    (cosines,) = one.cosines
    assert cosines.shape == (64, 96)
    assert (cosines[0, 0] > cosines[0, -1]) == (left > 0.5)


if __name__ == '__main__':
    main(globals())
