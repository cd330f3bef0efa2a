# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from tiny_algorithms import PAIRS, RANK, STD, Tiny, health_names, main
from torch import nn

from mmdense.models import DINONeck, StageNeck, group_distillation, multi_crop_distillation
from mmdense.models.layers import TeacherCenter
from mmdense.models.utils import search_features
from mmdense.registry import MODELS

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
            'model.neck.hid_channels=64',
            'model.neck.num_prototypes=16',
            'model.stage_neck.mid_channels=8',
            'model.stage_neck.hid_channels=16',
            'model.stage_neck.out_channels=8',
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


def test_golden_search(golden):
    g = golden('scfs_feature_search')
    number = int(g['num_images'])
    for layer in ('layer2', 'layer3', 'layer4'):
        maps = g[f'teacher_{layer}'][:number]
        found, attention = search_features(g[f'student_local_{layer}'], maps)
        close(attention, g[f'attention_{layer}'])
        close(found, g[f'found_{layer}'])


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


if __name__ == '__main__':
    main(globals())
