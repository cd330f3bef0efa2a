# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import VisionTransformer
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names, tiny_form
from torch import nn

from mmdense.checkpoints import read_checkpoint
from mmdense.cli import main
from mmdense.models import (
    DenseDistill,
    FrozenTeacher,
    MapDistillationHead,
    RegisterViT,
    feature_smooth_l1,
    relation_distillation,
)
from mmdense.models.heads.distillation_head import on_finer_grid
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError, InputError
from mmdense.utils.imagenet import IMAGENET_PIXELS

pytestmark = pytest.mark.usefixtures('mmdense_scope')

ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)


def teacher(**changes):
    """Return the config of a teacher with random weights: a vision transformer."""
    backbone = dict(type='mmpretrain.VisionTransformer', arch=ARCH, img_size=64, patch_size=16)
    return dict(dict(backbone=backbone), **changes)


def tiny():
    """Return what the generic tests need."""

    def parts(norm):
        return dict(
            neck=dict(type='ProjectionMLP', num_layers=1),
            head=dict(type='MapDistillationHead'),
            teacher=teacher(),
        )

    def all_terms(norm):
        head = dict(type='MapDistillationHead', relation=0.1, token=0.5)
        return dict(parts(norm), head=head, teacher=[teacher(), teacher(size=32)])

    return Tiny(
        algorithm='DenseDistill',
        family='distillation',
        parts=parts,
        variants={'DenseDistill of two teachers': all_terms},
        probed='necks.0.0',
        recipe='distill_dinov2-vitb14_r50_coco',
        options=[
            'model.teacher.checkpoint=None',
            'model.teacher.backbone.arch=deit-tiny',
            'model.teacher.backbone.img_size=28',
            'model.teacher.size=28',
        ],
        health=health_names(global_=PAIRS, dense=PAIRS),
        losses=['loss_cosine', 'loss_smooth_l1'],
        collapses=False,  # the teacher's features are targets that do not move
        own=['frozen_teacher', 'distillation_head', 'map_distillation', 'register_vit'],
    )


def config(**changes):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    return dict(dict(type='DenseDistill', backbone=backbone, **tiny().parts({})), **changes)


def build(**changes):
    torch.manual_seed(0)
    model = MODELS.build(config(**changes))
    model.init_weights()
    return model


def images(number=2, size=64):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the losses, written out


@pytest.mark.parametrize('beta', [0.5, 2.0])
def test_smooth_l1_is_the_formula(beta):
    s, t = 3 * torch.randn(2, 2, 5, 3, 4)
    d = (s - t).abs()
    wanted = torch.where(d < beta, 0.5 * d**2 / beta, d - 0.5 * beta).mean()
    close(feature_smooth_l1(s, t, beta), wanted)


def test_relation_is_the_formula():
    """Compare each location's cosines with the others, one location after the other."""
    s, t = torch.randn(2, 5, 2, 3, requires_grad=True), torch.randn(2, 7, 2, 3)
    terms = []
    for a, b in zip(s.flatten(2), t.flatten(2)):  # C×6
        for i in range(6):
            others = [j for j in range(6) if j != i]
            scores = [
                torch.stack([torch.cosine_similarity(x[:, i], x[:, j], dim=0) for j in others])
                for x in (a, b)
            ]
            share = torch.softmax(scores[1] / 0.1, 0)
            terms.append(-(share * torch.log_softmax(scores[0] / 0.1, 0)).sum())
    wanted = torch.stack(terms).mean()
    ours = relation_distillation(s, t, 0.1)
    close(ours, wanted)
    close(*torch.autograd.grad(ours, s), *torch.autograd.grad(wanted, s))


def test_relation_is_least_where_all_cosines_are_equal():
    t = torch.randn(2, 7, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(relation_distillation(3 * t, t), t)
    assert gradient.abs().max() < 1e-5
    assert relation_distillation(t.flip(3), t) > relation_distillation(t, t)


def test_head_is_the_weighted_sum():
    torch.manual_seed(0)
    s, t = torch.randn(2, 5, 2, 2), torch.randn(2, 5, 4, 3)
    a, b = torch.randn(2, 2, 5)
    head = MapDistillationHead(cosine=0.5, smooth_l1=2.0, relation=3.0, token=4.0)
    losses = head.loss(s, t, a, b)
    s = nn.functional.interpolate(s, (4, 3), mode='bilinear', align_corners=False)
    close(losses['cosine'], 0.5 * (1 - torch.cosine_similarity(s, t)).mean())
    close(losses['smooth_l1'], 2 * feature_smooth_l1(s, t, 2.0))
    close(losses['relation'], 3 * relation_distillation(s, t, 0.1))
    close(losses['token'], 4 * (1 - torch.cosine_similarity(a, b)).mean())
    assert list(MapDistillationHead(cosine=1, smooth_l1=0).loss(s, t, a, b)) == ['cosine']


def test_maps_meet_on_the_finer_grid():
    a, b = on_finer_grid(torch.randn(1, 2, 2, 6), torch.randn(1, 3, 4, 3))
    assert a.shape == (1, 2, 4, 6)
    assert b.shape == (1, 3, 4, 6)


@pytest.mark.parametrize('weights', [dict(cosine=-1), dict(cosine=0, smooth_l1=0)])
def test_weights_are_checked(weights):
    with pytest.raises(InputError, match='weights must be at least 0'):
        MapDistillationHead(**weights)


# ---------------------------------------------------------------- the step


def test_step_is_written_out():
    """Compute the losses of a step from the networks alone."""
    model, view = build(), images()
    losses = model([view], mode='loss')
    network = model.teachers[0].backbone
    assert network.training is False
    with torch.no_grad():
        (tokens,) = network(model.teachers[0].prepare(view))
    t = tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4)
    t = (t - t.mean(1, keepdim=True)) / (t.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    s = model.necks[0][0](model.backbone(view))
    s = nn.functional.interpolate(s, (4, 4), mode='bilinear', align_corners=False)
    close(losses['loss_cosine'], 0.9 * (1 - torch.cosine_similarity(s, t)).mean())
    close(losses['loss_smooth_l1'], 0.1 * feature_smooth_l1(s, t, 2.0))
    assert set(losses) == {'loss_cosine', 'loss_smooth_l1'}


def test_losses_of_teachers_and_layers_are_averaged():
    backbone = dict(config()['backbone'], out_indices=(2, 3))
    layers = [(0, -1), (1, -1)]
    both = build(backbone=backbone, teacher=[teacher(), teacher()], layers=layers)
    losses = both([images()], mode='loss')
    singles = []
    for i in range(2):
        for j, pair in enumerate(layers):
            one = build(backbone=backbone, layers=[pair])
            one.backbone = both.backbone
            one.teachers[0], one.necks[0][0] = both.teachers[i], both.necks[i][j]
            singles.append(one([images()], mode='loss')['loss_cosine'])
    close(losses['loss_cosine'], torch.stack(singles).mean())
    # each teacher and layer has its own projector
    assert len({id(neck) for necks in both.necks for neck in necks}) == 4


def test_only_the_student_learns():
    model = build(head=dict(type='MapDistillationHead', token=1.0))
    before = {k: v.clone() for k, v in model.teachers.state_dict().items()}
    sum(model.train()([images()], mode='loss').values()).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert not any(name.startswith('teachers.') for name in trained)
    assert all(torch.equal(before[k], v) for k, v in model.teachers.state_dict().items())


def test_teacher_stays_in_evaluation_mode():
    network = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    model = build(teacher=dict(backbone=network)).train()
    assert model.backbone.training
    assert not any(part.training for part in model.teachers.modules() if part is not model.teachers)
    mean = model.teachers[0].backbone.bn1.running_mean.clone()
    model([images()], mode='loss')
    assert torch.equal(model.teachers[0].backbone.bn1.running_mean, mean)


def test_student_learns_the_map():
    model = build()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = sum(model.train()([images()], mode='loss').values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- the teacher's images


def test_views_get_the_teachers_pixels():
    """Normalise the pixels of the views again, in the teacher's order of channels."""
    pixels = 255 * torch.rand(2, 3, 8, 8)
    views = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0], to_rgb=True)
    own = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
    network = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)

    def normalise(x, values):
        mean, std = (torch.tensor(values[k]).view(3, 1, 1) for k in ('mean', 'std'))
        return (x - mean) / std

    part = FrozenTeacher(network, **own, view_pixels=views)
    close(part.prepare(normalise(pixels, views)), normalise(pixels, own))
    part = FrozenTeacher(network, **own, to_rgb=False, view_pixels=views)
    close(part.prepare(normalise(pixels, views)), normalise(pixels.flip(1), own))
    part = FrozenTeacher(network, view_pixels=IMAGENET_PIXELS)
    x = torch.rand(1, 3, 8, 8)
    assert part.prepare(x) is x


@pytest.mark.parametrize(
    'img_size, patch, size, view, wanted',
    [
        (224, 16, None, (96, 96), (224, 224)),
        (224, 16, None, (448, 448), (224, 224)),
        (518, 14, None, (224, 224), (224, 224)),
        (518, 14, None, (320, 320), (322, 322)),
        (518, 14, None, (320, 160), (322, 168)),
        (518, 14, 518, (224, 224), (518, 518)),
    ],
)
def test_size_of_the_teachers_images(img_size, patch, size, view, wanted):
    network = dict(
        type='mmpretrain.VisionTransformer', arch=ARCH, img_size=img_size, patch_size=patch
    )
    part = FrozenTeacher(network, size=size)
    assert part.image_size(*view) == wanted
    assert part.prepare(torch.rand(1, 3, *view)).shape[2:] == wanted
    (found,), token = part(torch.rand(1, 3, *view))
    assert found.shape == (1, 24, wanted[0] // patch, wanted[1] // patch)
    assert token.shape == (1, 24)


def test_a_convolutional_teacher_takes_the_view():
    network = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    part = FrozenTeacher(network)
    (found,), token = part(torch.rand(2, 3, 96, 64))
    assert found.shape == (2, 64, 3, 2)
    assert token.shape == (2, 64)


def test_images_of_other_channels_are_refused():
    model = build(backbone=dict(config()['backbone'], in_channels=1))
    with pytest.raises(InputError, match='the images have 1 channels, the teacher takes 3'):
        model([torch.rand(2, 1, 64, 64)], mode='loss')


def test_register_tokens_are_no_part_of_the_map():
    torch.manual_seed(0)
    plain = VisionTransformer(arch=ARCH, img_size=64, out_type='featmap')
    ours = RegisterViT(num_registers=3, arch=ARCH, img_size=64, out_type='featmap')
    missing = ours.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ['register_tokens']
    (found,) = ours(images())
    assert found.shape == (2, 24, 4, 4)
    tokens = {}
    ours.layers[0].register_forward_pre_hook(lambda part, args: tokens.update(x=args[0]))
    ours.register_tokens.data.normal_()
    ours(images())
    close(tokens['x'][:, 1:4], ours.register_tokens.expand(2, -1, -1))  # without positions
    plain.layers[0].register_forward_pre_hook(lambda part, args: tokens.update(plain=args[0]))
    plain(images())
    close(tokens['x'][:, [0, *range(4, 20)]], tokens['plain'])


# ---------------------------------------------------------------- files and building


def save(tmp_path, tensors, name='teacher.pth'):
    torch.save(tensors, tmp_path / name)
    return str(tmp_path / name)


def test_building_reads_no_file(tmp_path):
    missing = str(tmp_path / 'missing.pth')
    model = MODELS.build(config(teacher=teacher(checkpoint=missing)))
    with pytest.raises(InputError, match=r'not filled: call init_weights\(\)'):
        model([images()], mode='loss')
    with pytest.raises(CheckpointError, match=re.escape(missing)) as error:
        model.init_weights()
    assert '\n' not in str(error.value)


def test_the_file_fills_the_teacher(tmp_path):
    source = VisionTransformer(arch=ARCH, img_size=64)
    source.init_weights()
    path = save(tmp_path, source.state_dict())
    model = MODELS.build(config(teacher=teacher(checkpoint=path)))
    model.init_weights()
    filled = model.teachers[0].backbone.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in source.state_dict().items())
    assert not any(p.requires_grad for p in model.teachers.parameters())


def test_a_files_weights_are_in_no_checkpoint(tmp_path):
    source = VisionTransformer(arch=ARCH, img_size=64)
    source.init_weights()
    model = MODELS.build(config(teacher=teacher(checkpoint=save(tmp_path, source.state_dict()))))
    model.init_weights()
    state = model.state_dict()
    assert not any(name.startswith('teachers') for name in state)
    other = MODELS.build(config(teacher=model_config_of(model)))
    other.init_weights()
    assert str(other.load_state_dict(state)) == '<All keys matched successfully>'
    filled = other.teachers[0].backbone.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in source.state_dict().items())
    # random weights are in no file: they are saved
    assert any(name.startswith('teachers.0.backbone.') for name in build().state_dict())


def model_config_of(model):
    return teacher(checkpoint=model.teachers[0].fill.checkpoint)


def test_a_file_of_another_network_is_refused(tmp_path):
    source = VisionTransformer(arch=dict(ARCH, num_layers=3), img_size=64)
    path = save(tmp_path, source.state_dict())
    model = MODELS.build(config(teacher=teacher(checkpoint=path)))
    with pytest.raises(CheckpointError, match='does not fit VisionTransformer') as error:
        model.init_weights()
    assert '\n' not in str(error.value)


def test_without_a_teacher_there_is_one_line():
    with pytest.raises(InputError, match=r'there is no teacher: set teacher=dict\(checkpoint=FILE'):
        MODELS.build(config(teacher=None))


@pytest.mark.parametrize('layers, name', [([(2, -1)], 'student'), ([(-1, 4)], 'teacher')])
def test_missing_maps_are_named(layers, name):
    with pytest.raises(InputError, match=f'of the {name}, which returns 1'):
        MODELS.build(config(layers=layers))


def test_agreement_and_spread_are_probed():
    model, seen = build(), {}
    model.health_monitor = lambda features: seen.update(
        {name: value() for name, value in features.items()}
    )
    model([images()], mode='loss')
    assert {name: [tuple(x.shape) for x in pair] for name, pair in seen.items()} == {
        'global_': [(2, 24)] * 2,
        'dense': [(2, 24, 4, 4)] * 2,
    }


# ---------------------------------------------------------------- the recipes


def test_recipe_is_that_of_the_sources():
    """Hold feature distillation's and AM-RADIO's numbers, and DINOv2's ViT-B/14."""
    recipe = load_recipe('configs/distill_dinov2-vitb14_r50_coco.py')
    optimizer, batch = recipe.optim_wrapper.optimizer, 8 * recipe.train_dataloader.batch_size
    assert (optimizer.type, optimizer.weight_decay) == ('AdamW', 0.05)
    assert optimizer.lr == pytest.approx(3e-4 * batch / 512)
    assert recipe.auto_scale_lr.base_batch_size == batch
    assert recipe.train_cfg.max_epochs == 300
    assert recipe.param_scheduler[0].warmup == 10
    (view,) = recipe.train_pipeline[1].transforms
    assert tuple(view[0].crop_ratio_range) == (0.08, 1.0)
    head = recipe.model.head
    assert (head.cosine, head.smooth_l1) == (0.9, 0.1)


@pytest.mark.parametrize('name', ['r50', 'convnext-tiny'])
def test_recipes_build(name):
    recipe = load_recipe(f'configs/distill_dinov2-vitb14_{name}_coco.py')
    with DefaultScope.overwrite_default_scope('mmdense'):
        norm = dict(type='BN') if name == 'r50' else None
        if norm:
            recipe.model.backbone.norm_cfg = norm
        model = MODELS.build(recipe.model)
    assert isinstance(model, DenseDistill)
    (part,) = model.teachers
    assert part.channels == (768,)
    assert part.image_size(224, 224) == (224, 224)
    assert part.backbone.patch_resolution == (37, 37)
    assert [neck.out_channels for neck in model.necks[0]] == [768]


# ---------------------------------------------------------------- the command


def save_photos(folder, number=8):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 255, (96, 96, 3), np.uint8))
    return str(folder)


def save_vit(tmp_path):
    network = VisionTransformer(arch='deit-tiny', img_size=32, patch_size=16)
    network.init_weights()
    return save(tmp_path, network.state_dict())


SMALL = ['--backbone', 'resnet18', '--size', '64', '--batch-size', '4', '--workers', '0']


def test_command_trains_and_resumes(tmp_path, capsys):
    """The config of the run has the teacher's network; a run continues with the same command."""
    photos, path = save_photos(tmp_path / 'photos'), save_vit(tmp_path)
    command = ['pretrain', photos, '--method', 'distill', '--teacher', path, *SMALL]
    command += ['--out', str(tmp_path / 'run'), '--epochs']
    main([*command, '1'])
    table = capsys.readouterr().out
    assert re.search(r'^teacher +teacher\.pth +frozen', table, re.M)
    cfg = Config.fromfile(str(tmp_path / 'run' / 'config.py'))
    assert cfg.model.teacher.checkpoint == path
    assert cfg.model.teacher.backbone.type == 'mmpretrain.VisionTransformer'
    assert cfg.model.teacher.backbone.img_size == 32
    assert (tmp_path / 'run' / 'backbone.pth').is_file()
    state = read_checkpoint(str(tmp_path / 'run' / 'epoch_1.pth'))['state_dict']
    assert not any(name.startswith('teachers.') for name in state)
    main([*command, '2', '--resume'])
    assert 'Ignored' not in capsys.readouterr().err
    assert (tmp_path / 'run' / 'epoch_2.pth').is_file()


@pytest.mark.parametrize(
    'options, line',
    [
        (['--method', 'distill', '--teacher', 'missing.pth'], 'missing.pth does not exist'),
        (['--method', 'distill', '--teacher', 'bad.pth'], 'bad.pth'),
        (['--method', 'distill', '--teacher', 'no-such-name'], 'no-such-name'),
        (['--method', None, '--teacher', 'vit.pth'], 'has no teacher'),
    ],
)
def test_command_refuses_in_one_line(options, line, tmp_path, capsys, monkeypatch):
    other = tiny_form().method
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / 'photos')
    (tmp_path / 'bad.pth').write_bytes(b'no checkpoint')
    save_vit(tmp_path)
    (tmp_path / 'teacher.pth').rename(tmp_path / 'vit.pth')
    with pytest.raises(SystemExit):
        main(['pretrain', 'photos', *(word or other for word in options), *SMALL])
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert line in error
    assert not (tmp_path / 'work_dirs').exists()
