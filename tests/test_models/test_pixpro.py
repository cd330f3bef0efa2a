# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import pytest
import torch
from recipes import check_lars_recipe, load_recipe
from tiny_algorithms import PAIRS, RANK, STD, Tiny, health_names
from torch import nn

from mmdense.models import InstanceConsistencyHead, PixContrastHead, PixPro, PixProHead
from mmdense.models.layers import MomentumEncoder
from mmdense.models.losses import pixel_consistency, pixel_contrast
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')

MLP = dict(type='ProjectionMLP', hid_channels=32, out_channels=16)


def tiny():
    """Return what the generic tests need."""

    def parts(norm, head):
        mlp = dict(type='ProjectionMLP', hid_channels=16, out_channels=8, norm_cfg=norm)
        return dict(total_steps=10, neck=dict(mlp, in_channels=64), head=head)

    def with_instance(norm):
        mlp = dict(type='ProjectionMLP', hid_channels=16, out_channels=8, norm_cfg=norm)
        return dict(
            parts(norm, dict(type='PixProHead', in_channels=8)),
            instance_neck=dict(mlp, in_channels=64),
            instance_head=dict(type='InstanceConsistencyHead', predictor=dict(mlp, in_channels=8)),
        )

    return Tiny(
        algorithm='PixPro',
        family='momentum',
        parts=with_instance,
        variants=dict(PixContrast=lambda norm: parts(norm, dict(type='PixContrastHead'))),
        recipe='pixpro_r50_coco',
        options=[
            'model.neck.in_channels=512',
            'model.neck.hid_channels=64',
            'train_dataloader.dataset.pipeline.1.transforms.1.0.scale=64',
        ],
        health=[*health_names(global_=[STD, RANK], dense=PAIRS), 'without_positive'],
        losses=['loss_pixel'],
    )


def config(depth=18, instance=False, **changes):
    channels = 512 if depth < 50 else 2048
    cfg = dict(
        type='PixPro',
        backbone=dict(type='mmpretrain.ResNet', depth=depth),
        neck=dict(MLP, in_channels=channels),
        head=dict(type='PixProHead', in_channels=16),
        total_steps=10,
    )
    if instance:
        cfg['instance_neck'] = dict(MLP, in_channels=channels)
        cfg['instance_head'] = dict(
            type='InstanceConsistencyHead', predictor=dict(MLP, in_channels=16)
        )
    cfg.update(changes)
    return cfg


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('pos_ratio', [0.5, 0.7])
def test_golden_consistency(golden, pos_ratio):
    """Loss and gradient of the published function, from its boxes."""
    g = golden(f'pixpro_consistency_pos{pos_ratio}')
    head = PixProHead(in_channels=g['q'].size(1), pos_ratio=float(g['pos_ratio']))
    head.propagate = lambda z: z
    q = g['q'].requires_grad_()
    loss = head.loss(q, g['k'], g['box_q'], g['box_k'])
    close(loss, g['loss'])
    (grad,) = torch.autograd.grad(loss, q)
    # The published function takes normalised cells; our head normalises once more, which
    # projects the gradient onto the sphere.
    radial = (g['grad_q'] * q).sum(1, keepdim=True) * q
    expected = (g['grad_q'] - radial).detach()
    # the gradient of a mean is small, the smaller the more there is to average
    close(grad / expected.abs().max(), expected / expected.abs().max())


@pytest.mark.parametrize('pos_ratio', [0.5, 0.7])
def test_golden_consistency_gradient_of_the_loss_itself(golden, pos_ratio):
    from mmdense.models.utils import grid_distances

    g = golden(f'pixpro_consistency_pos{pos_ratio}')
    grids = g['q'].shape[2:], g['k'].shape[2:]
    positive = grid_distances(g['box_q'], g['box_k'], *grids) < float(g['pos_ratio'])
    q = g['q'].requires_grad_()
    loss = pixel_consistency(q.flatten(2), g['k'].flatten(2), positive)
    close(loss, g['loss'])
    scale = g['grad_q'].abs().max()
    close(torch.autograd.grad(loss, q)[0] / scale, g['grad_q'] / scale)


@pytest.mark.parametrize('name', ['p2.0_l1', 'p2.0_l2', 'p1.0_l0', 'p0.5_l1'])
def test_golden_propagation(golden, name):
    g = golden(f'pixpro_propagation_{name}')
    num_layers = 1 if 'weight' in g else 2 if 'linear1_weight' in g else 0
    sizes = dict(power=float(g['power']), clamp=float(g['clamp']))
    head = PixProHead(g['feat'].size(1), num_layers=num_layers, **sizes)
    if num_layers == 1:
        head.value_transform.load_state_dict(dict(weight=g['weight'], bias=g['bias']))
    elif num_layers == 2:
        head.value_transform = MODELS.build(mlp_of(g, ''))
        load_mlp(head.value_transform, g, '')
    close(head.propagate(g['feat']), g['out'])


def mlp_of(g, prefix):
    """The config of an MLP with the published MLP2d's widths."""
    hidden, out = g[f'{prefix}linear1_weight'], g[f'{prefix}linear2_weight']
    widths = dict(in_channels=hidden.size(1), hid_channels=hidden.size(0), out_channels=len(out))
    return dict(type='ProjectionMLP', **widths)


def load_mlp(mlp, g, prefix):
    """The published MLP2d's parameters into ours; its BatchNorm trains."""
    for index, name in ((0, 'linear1'), (1, 'bn1'), (3, 'linear2')):
        for kind in ('weight', 'bias'):
            mlp.mlp[index].get_parameter(kind).data.copy_(g[f'{prefix}{name}_{kind}'])


def test_golden_instance(golden):
    g = golden('pixpro_instance')
    head = InstanceConsistencyHead(mlp_of(g, 'predictor_'))
    load_mlp(head.predictor, g, 'predictor_')
    close(head.loss(g['projection_student'], g['projection_teacher']), g['loss_one_direction'])


def test_power_below_one_has_a_finite_gradient():
    z = torch.randn(2, 16, 3, 3)
    z[0, :, 0, 0] = -z[0, :, 1, 1]  # the similarity is clamped to 0 there
    z.requires_grad_()
    head = PixProHead(16, power=0.5)
    head.propagate(z).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_pixel_contrast_is_the_papers_formula():
    """Equation 2, cell by cell."""
    torch.manual_seed(0)
    q, k = (nn.functional.normalize(torch.randn(3, 8, n), dim=1) for n in (5, 6))
    positive = torch.rand(3, 5, 6) < 0.2
    positive[1] = False  # an image whose views do not overlap
    expected = []
    for n in range(3):
        cells = []
        for i in range(5):
            if positive[n, i].any():
                e = torch.exp(q[n, :, i] @ k[n] / 0.3)
                cells.append(-torch.log(e[positive[n, i]].sum() / e.sum()))
        expected.append(torch.stack(cells).mean() if cells else torch.zeros(()))
    close(pixel_contrast(q, k, positive, 0.3), torch.stack(expected).mean())


@pytest.mark.parametrize('head', [PixProHead(16), PixContrastHead()])
def test_no_positive_pair_is_zero_and_differentiable(head):
    z = torch.randn(2, 16, 4, 4, requires_grad=True)
    far = torch.tensor([[0.0, 0, 0.2, 0.2]] * 2), torch.tensor([[0.8, 0.8, 1, 1]] * 2)
    loss = head.loss(z, torch.randn(2, 16, 4, 4), *far)
    loss.backward()
    assert loss == 0 and (z.grad == 0).all()


def test_share_of_images_without_a_positive_pair():
    """Two of three images have views that do not meet."""
    box = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).repeat(3, 1)
    other = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.9, 0.9, 0.6, 0.6]])
    z = torch.randn(3, 8, 4, 4)
    z[1] = torch.eye(16)[:8].reshape(8, 4, 4) + 0.01
    head = PixProHead(8)
    # locations that touch across the corner are close enough
    far = other + torch.tensor([0.2, 0.2, 0.2, 0.2])
    far[1] = other[1]
    values = head.similarities(z, z, box, far)
    assert values['without_positive']() == pytest.approx(2 / 3)


@pytest.mark.parametrize('head', [PixProHead(16, num_layers=0), PixContrastHead()])
def test_a_place_seen_twice_is_better_than_two_places(head):
    """The same features score better with boxes that say so."""
    z = torch.randn(4, 16, 4, 4)
    here = torch.tensor([[0.0, 0, 0.5, 0.5]]).expand(4, -1)
    mirrored = here[:, [2, 1, 0, 3]]
    assert head.loss(z, z, here, here) < head.loss(z, z, here, mirrored)
    assert head.loss(z, z.flip(3), here, mirrored) < head.loss(z, z, here, mirrored)


@pytest.mark.parametrize(
    'backbone, channels',
    [
        (dict(type='mmpretrain.ResNet', depth=50), 2048),
        (dict(type='mmpretrain.ConvNeXt', arch='tiny', gap_before_final_norm=False), 768),
        (
            dict(type='mmpretrain.SwinTransformer', arch='tiny', img_size=64, pad_small_map=True),
            768,
        ),
    ],
    ids=['resnet50', 'convnext-tiny', 'swin-tiny'],
)
def test_backbones_build_and_step(backbone, channels, two_views):
    model = MODELS.build(config(backbone=backbone, neck=dict(MLP, in_channels=channels)))
    step(model, two_views(n=2))


@pytest.mark.parametrize('instance', [False, True])
@pytest.mark.parametrize(
    'head', [dict(type='PixProHead', in_channels=16), dict(type='PixContrastHead')]
)
def test_builds_and_steps(head, instance, two_views):
    model = MODELS.build(config(instance=instance, head=head))
    losses = step(model, two_views())
    assert set(losses) == {'loss_pixel'} | ({'loss_instance'} if instance else set())


def step(model, batch):
    model.init_weights()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = {k: v.clone() for k, v in model.named_parameters() if v.requires_grad}
    losses = model(*batch, mode='loss')
    sum(losses.values()).backward()
    unused = [k for k in before if model.get_parameter(k).grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop
    assert all(p.grad is None for p in model.encoder_k.parameters())
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(v, model.get_parameter(k)) for k, v in before.items())
    return losses


def test_loss_is_both_directions_of_the_parts(two_views):
    """By hand, from the parts that the goldens prove."""
    model = MODELS.build(config(instance=True, instance_weight=0.3))
    views, samples = two_views()
    box_1, box_2 = torch.stack([s.view_boxes for s in samples], dim=1)
    losses = model.loss(views, samples)
    model.train()
    with torch.no_grad():
        maps = [model.backbone(view) for view in views]
        z, iz = [model.neck(m) for m in maps], [model.instance_neck(m) for m in maps]
        twin = model.encoder_k.module  # a copy of the student after the first update
        maps = [twin['backbone'](view) for view in views]
        t, it = [twin['neck'](m) for m in maps], [twin['instance_neck'](m) for m in maps]
        pixel = model.head.loss(z[0], t[1], box_1, box_2)
        pixel = pixel + model.head.loss(z[1], t[0], box_2, box_1)
        instance = model.instance_head.loss(iz[0], it[1]) + model.instance_head.loss(iz[1], it[0])
    close(losses['loss_pixel'], pixel)
    close(losses['loss_instance'], 0.3 * instance)


def test_momentum_follows_the_cosine_and_survives_a_resume(two_views):
    """m(k) by step; a restored model goes on where it was, to the last bit."""
    model = MODELS.build(config())
    assert model.encoder_k.current_momentum() == pytest.approx(0.01)
    for _ in range(5):
        model.loss(*two_views(n=2))
    assert model.encoder_k.current_momentum() == pytest.approx(0.005)
    other = MODELS.build(config())
    other.load_state_dict(model.state_dict(), strict=True)
    batch = two_views(n=2)
    for m in (model, other):
        m.loss(*batch)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert int(other.encoder_k.steps) == 6


def test_learns_the_correspondence(two_views):
    torch.manual_seed(0)
    model = MODELS.build(config(total_steps=100))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = two_views(n=8)
    history = []
    for _ in range(10):
        loss = model.loss(*batch)['loss_pixel']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.5 and history[-1] > -4


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(momentum=1.0), 'momentum must be in'),
        (dict(instance_weight=0), 'instance_weight must be a number above 0'),
        (dict(instance_neck=dict(MLP, in_channels=512)), 'needs both of instance_neck'),
        (dict(head=dict(type='PixProHead', pos_ratio=-1)), 'pos_ratio must be a number above 0'),
        (dict(head=dict(type='PixProHead', power=0)), 'power must be a number above 0'),
        (dict(head=dict(type='PixProHead', num_layers=3)), 'num_layers must be 0, 1 or 2'),
        (dict(head=dict(type='PixProHead', clamp=1)), r'clamp must be in \[0, 1\)'),
        (dict(head=dict(type='PixContrastHead', temperature=0)), 'temperature must be a number'),
        (dict(neck=dict(MLP, in_channels=0)), 'in_channels must be a whole number'),
    ],
)
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_unknown_arguments_name_the_algorithm():
    with pytest.raises(TypeError, match='PixPro got an unexpected argument: foo'):
        MODELS.build(config(foo=1))


def test_half_precision(two_views):
    """Losses are summed in float32 under autocast."""
    model = MODELS.build(config(instance=True))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(*two_views())
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()


def test_wrong_batches_say_so(two_views):
    model = MODELS.build(config())
    views, samples = two_views()
    with pytest.raises(InputError, match='PixPro needs 2 views of every image, got 1'):
        model.loss(views[:1], samples)
    with pytest.raises(InputError, match='carry no boxes of the views'):
        model.loss(views, None)
    with pytest.raises(InputError, match='in_channels=64, but its input is'):
        MODELS.build(config(neck=dict(MLP, in_channels=64))).loss(views, samples)


def test_without_a_runner_the_schedule_asks_for_total_steps(two_views):
    from mmengine.logging import MessageHub

    MessageHub.get_instance('without a runner')  # the current one from here on
    model = MODELS.build(config(total_steps=None))
    model.loss(*two_views(n=2))  # the first step copies
    with pytest.raises(InputError, match='total_steps'):
        model.loss(*two_views(n=2))


def test_model_is_exported_by_name():
    assert MODELS.get('PixPro') is PixPro


@pytest.mark.parametrize(
    'path, epochs, images, instance',
    [
        ('configs/pixpro_r50_in1k.py', 100, 'train', False),
        ('configs/pixpro/pixpro_resnet50_8xb128-coslr-400e_in1k.py', 400, 'train', False),
        ('configs/pixpro/pixpro-instance_resnet50_8xb128-coslr-100e_in1k.py', 100, 'train', True),
        ('configs/pixpro/pixpro-instance_resnet50_8xb128-coslr-400e_in1k.py', 400, 'train', True),
        ('configs/pixpro_r50_coco.py', 800, 'train2017', False),
    ],
)
def test_pixpro_recipe(path, epochs, images, instance):
    config = load_recipe(path)
    check_lars_recipe(config, 1024, epochs, images)
    model = config.model
    projector = dict(
        type='ProjectionMLP',
        in_channels=2048,
        hid_channels=4096,
        out_channels=256,
        num_layers=2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    )
    assert model.neck == projector
    head = dict(type='PixProHead', in_channels=256, num_layers=1, power=2, clamp=0, pos_ratio=0.7)
    assert model.head == head
    assert ('instance_neck' in model) == instance
    if instance:
        assert model.instance_neck == projector and model.instance_weight == 1
        assert model.instance_head.predictor == dict(projector, in_channels=256)
    first, second = config.train_dataloader.dataset.pipeline[1].transforms
    for view in (first, second):
        assert view[0].crop_ratio_range == (0.08, 1.0) and view[0].interpolation == 'bilinear'
        assert 'min_overlap' not in view[0]


def test_golden_cosine_schedule(golden):
    """The momentum at step k, from the published code."""
    g = golden('pixpro_momentum_schedule')
    encoder = MomentumEncoder(
        nn.Linear(2, 2),
        momentum=1 - float(g['base']),
        end_momentum=0.0,
        total_steps=int(g['total_iters']),
    )
    for step, momentum in zip(g['k'], g['momentum']):
        encoder.load_state_dict(dict(encoder.state_dict(), steps=step))
        assert 1 - encoder.current_momentum() == pytest.approx(float(momentum), abs=1e-9)
