# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from recipes import load_recipe
from tiny_algorithms import PAIRS, Tiny, health_names
from torch import nn
from torch.nn.functional import normalize

from mmdense.models import DenseCL, DenseCLNeck, InfoNCEHead, KeyQueue, info_nce, match_locations
from mmdense.registry import MODELS
from mmdense.utils.errors import InputError

pytestmark = pytest.mark.usefixtures('mmdense_scope')


def tiny():
    """Return what the generic tests need."""
    neck = dict(type='DenseCLNeck', in_channels=64, hid_channels=16, out_channels=8)
    dim, grid = 8, 9
    # map, key, dense keys, their mean
    keys = grid * 64 + dim + dim * grid + dim

    def calls(image, patches, seen):
        # images to be encoded elsewhere, and back; both queues' keys
        return [
            ('all_to_all_single', 3 * image * 4),
            ('all_to_all_single', 3 * keys * 4),
            ('all_gather', 3 * 2 * dim * 4),
        ]

    return Tiny(
        algorithm='DenseCL',
        family='queue',
        parts=lambda norm: dict(
            neck=neck, head=dict(type='InfoNCEHead'), queue_len=13, feat_dim=dim
        ),
        recipe='densecl_r50_coco',
        options=['model.neck.in_channels=512', 'model.neck.hid_channels=64', 'model.queue_len=64'],
        health=[*health_names(global_=PAIRS, dense=PAIRS), 'match_entropy'],
        losses=['loss_single', 'loss_dense'],
        example=True,
        calls=calls,
    )


def config(depth=18, **changes):
    channels = 512 if depth < 50 else 2048
    cfg = dict(
        type='DenseCL',
        queue_len=64,
        feat_dim=16,
        momentum=0.001,
        loss_lambda=0.5,
        backbone=dict(
            type='mmpretrain.ResNet',
            depth=depth,
            norm_cfg=dict(type='BN'),
            zero_init_residual=False,
        ),
        neck=dict(type='DenseCLNeck', in_channels=channels, hid_channels=32, out_channels=16),
        head=dict(type='InfoNCEHead', temperature=0.2),
    )
    cfg.update(changes)
    return cfg


def views(n=4, size=64):
    return [torch.randn(n, 3, size, size) for _ in range(2)]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Recorded(nn.Module):
    """A backbone whose output for the image n of a view is written down."""

    def __init__(self, maps):
        super().__init__()
        self.maps = nn.Parameter(maps, requires_grad=False)  # 2×N×C×H×W

    def forward(self, x):
        return (self.maps[int(x.flatten()[0])],)


class RecordedNeck(Recorded):
    """The same for the neck: it knows the view from the backbone's map."""

    def __init__(self, backbone_maps, vectors, grids, means):
        super().__init__(backbone_maps)
        self.out = [nn.ParameterList(t) for t in (vectors, grids, means)]
        self.pool = nn.Identity()

    def forward(self, maps):
        view = 0 if torch.equal(maps[-1], self.maps[0]) else 1
        return tuple(out[view] for out in self.out)


def test_golden_losses(golden):
    """The published code's losses, queues and matches, through loss() itself."""
    g = golden('densecl_losses')
    # N×C×S² to N×C×1×S²: any number of locations is a map
    maps = torch.stack([g[f'backbone_{view}'].unsqueeze(2) for view in 'qk'])
    n = maps.size(1)
    zeros = torch.zeros_like(g['key_dense'])
    neck = RecordedNeck(
        maps,
        (g['global_q'], g['global_k']),
        (g['grid_q'], g['grid_k']),
        (zeros, g['key_dense']),
    )
    feat_dim, queue_len = g['queue_global'].shape
    model = DenseCL(
        Recorded(maps),
        neck,
        InfoNCEHead(float(g['temperature'])),
        queue_len=queue_len,
        feat_dim=feat_dim,
        loss_lambda=0.5,
    )
    model.queue.keys.copy_(g['queue_global'])
    model.queue2 = KeyQueue(*g['queue_dense'].shape)
    model.queue2.keys.copy_(g['queue_dense'])
    losses = model.loss([torch.zeros(n, 3, 2, 2), torch.ones(n, 3, 2, 2)])
    close(losses['loss_single'], 0.5 * g['loss_single'])
    close(losses['loss_dense'], 0.5 * g['loss_dense'])
    match = match_locations(normalize(g['backbone_q'], dim=1), normalize(g['backbone_k'], dim=1))
    assert torch.equal(match, g['match'])
    # the queue of global keys gets k, that of dense keys the cells' mean
    close(model.queue.keys[:, :n].t(), g['key_global'])
    close(model.queue2.keys[:, :n].t(), g['key_dense'])


def test_equals_mmpretrain():
    """mmpretrain's state dict loads whole; then the same losses, queues and
    gradients, for several steps."""
    theirs_cfg = config(
        head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'), temperature=0.2)
    )
    theirs_cfg = copy.deepcopy(theirs_cfg)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.registry import MODELS as MMPRETRAIN

        theirs = MMPRETRAIN.build(theirs_cfg)
    # in one memory format: the last digits depend on it
    ours = MODELS.build(config(channels_last=False))
    assert type(ours) is DenseCL and type(theirs) is not DenseCL
    result = ours.load_state_dict(theirs.state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert int(ours.queue.filled) == 64
    for _ in range(3):
        inputs = views()
        expected, losses = theirs.loss(inputs, None), ours.loss(inputs, None)
        assert losses.keys() == expected.keys()
        for name in expected:
            close(losses[name], expected[name])
        for model, result in ((theirs, expected), (ours, losses)):
            model.zero_grad()
            sum(result.values()).backward()
        with torch.no_grad():
            for (name, p), q in zip(theirs.named_parameters(), ours.parameters()):
                if p.grad is not None:
                    # BatchNorm over a few cells amplifies rounding on the way down.
                    error = (p.grad - q.grad).norm() / p.grad.norm()
                    assert error < (1e-5 if name.startswith('neck') else 1e-2), (name, error)
                    p -= 0.01 * p.grad
                    q.copy_(p)
        close(ours.queue.keys, theirs.queue)
        close(ours.queue2.keys, theirs.queue2)
        assert int(ours.queue.ptr) == int(theirs.queue_ptr)


def test_its_own_state_dict_goes_round():
    model, other = MODELS.build(config()), MODELS.build(config())
    model.loss(views())
    other.load_state_dict(model.state_dict(), strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize('num_grid', [1, 3, 5])
def test_num_grid_pools_the_backbone_map_too(num_grid):
    cfg = config()
    cfg['neck']['num_grid'] = num_grid
    model = MODELS.build(cfg)
    losses = model.loss(views(size=128))  # a 4×4 map
    assert all(torch.isfinite(v) for v in losses.values())
    feat, _, grid, _ = model._encode(model.backbone, model.neck, views(size=128)[0])
    assert feat.size(2) == grid.size(2) == num_grid**2
    torch.testing.assert_close(feat.norm(dim=1), torch.ones(4, num_grid**2))


@pytest.mark.parametrize(
    'backbone, channels',
    [
        (dict(type='mmpretrain.ResNet', depth=18), 512),
        (dict(type='mmpretrain.ResNet', depth=50), 2048),
        (
            dict(type='mmpretrain.ConvNeXt', arch='tiny', gap_before_final_norm=False),
            768,
        ),
        (
            dict(type='mmpretrain.SwinTransformer', arch='tiny', img_size=64, pad_small_map=True),
            768,
        ),
    ],
    ids=['resnet18', 'resnet50', 'convnext-tiny', 'swin-tiny'],
)
def test_backbones_build_and_step(backbone, channels):
    neck = dict(type='DenseCLNeck', in_channels=channels, hid_channels=32, out_channels=16)
    model = MODELS.build(config(backbone=backbone, neck=neck))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {k: v.clone() for k, v in model.named_parameters() if v.requires_grad}
    losses = model(views(n=2), mode='loss')
    sum(losses.values()).backward()
    unused = [k for k in before if model.get_parameter(k).grad is None]
    assert not unused, unused  # or DistributedDataParallel would stop
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(v, model.get_parameter(k)) for k, v in before.items())


def test_no_gradient_through_keys_or_match():
    model = MODELS.build(config())
    sum(model.loss(views()).values()).backward()
    assert all(p.grad is None for p in model.encoder_k.parameters())
    # λ = 1 and a frozen neck: what reaches the backbone comes through the neck alone
    model = MODELS.build(config(loss_lambda=1.0))
    model.neck.mlp2.requires_grad_(False).eval()
    for p in model.neck.mlp2.parameters():
        p.zero_()
    sum(model.loss(views()).values()).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.backbone.parameters())


@pytest.mark.parametrize('loss_lambda, silent', [(0.0, 'loss_dense'), (1.0, 'loss_single')])
def test_lambda_weighs_the_parts(loss_lambda, silent):
    losses = MODELS.build(config(loss_lambda=loss_lambda)).loss(views())
    assert losses[silent] == 0 and sum(losses.values()) > 0


def test_learns_to_tell_images_apart():
    """A few steps on one batch bring the loss well below chance."""
    torch.manual_seed(0)
    model = MODELS.build(config(queue_len=32))
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images = torch.randn(8, 3, 64, 64)
    for _ in range(12):
        losses = model.loss([images + 0.1 * torch.randn_like(images) for _ in range(2)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    # the queue holds only real keys by now; chance is ln(33) = 3.5
    assert int(model.queue.filled) == 32
    assert sum(losses.values()) < 3.3


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(queue_len=-1), 'queue_len must be a whole number'),
        (dict(queue_len='many'), 'queue_len must be a whole number'),
        (dict(feat_dim=0), 'feat_dim must be a whole number'),
        (dict(momentum=1.0), 'momentum must be in'),
        (dict(loss_lambda=2), r'loss_lambda must be in \[0, 1\]'),
        (dict(head=dict(type='InfoNCEHead', temperature=0)), 'temperature must be a number above'),
        (dict(neck=dict(type='DenseCLNeck', in_channels=-1)), 'in_channels must be a whole number'),
    ],
)
def test_wrong_arguments_say_so(changes, message):
    with pytest.raises(InputError, match=message):
        MODELS.build(config(**changes))


def test_unknown_keys_say_so():
    with pytest.raises(TypeError, match='queue_length'):
        MODELS.build(config(queue_length=64))


def test_wrong_batches_say_so():
    model = MODELS.build(config())
    image = torch.randn(4, 3, 64, 64)
    for inputs in (image, [image], [image] * 3):
        with pytest.raises(InputError, match='DenseCL needs 2 views of every image, got'):
            model.loss(inputs)
    with pytest.raises(InputError, match='of equal N'):
        model.loss([image, image[:2]])
    with pytest.raises(InputError, match='queue_len=64 is smaller than the 65 keys'):
        model.loss(views(n=65, size=32))


def test_wrong_channels_say_so():
    with pytest.raises(InputError, match='in_channels=512, but the backbone gives'):
        DenseCLNeck(512)((torch.zeros(2, 256, 4, 4),))
    with pytest.raises(InputError, match='return feature maps'):
        DenseCLNeck(512)((torch.zeros(2, 512),))


def test_init_follows_the_published_code(repo):
    """fan_in for the backbone's convolutions and the neck's FCs, bias 0, last
    BatchNorm of a block not zero, 1×1 convolutions as PyTorch has them."""
    from mmengine.config import Config

    cfg = Config.fromfile(
        str(repo / 'configs/densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py')
    ).model
    cfg.queue_len = 8
    model = MODELS.build(cfg)
    model.init_weights()
    conv = model.backbone.layer3[0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.02)
    assert (model.backbone.layer3[0].bn3.weight == 1).all()
    fc, bias = model.neck.mlp[0].weight, model.neck.mlp[0].bias
    assert fc.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02) and (bias == 0).all()
    conv1x1 = model.neck.mlp2[0].weight
    assert conv1x1.abs().max().item() == pytest.approx((1 / 2048) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    'path, epochs, lr, images',
    [
        ('configs/densecl_r50_coco.py', 800, 0.3, ('data/coco', 'train2017')),
        ('configs/densecl_r50_in1k.py', 200, 0.03, ('data/imagenet', 'train')),
    ],
)
def test_densecl_recipe(path, epochs, lr, images):
    config = load_recipe(path)
    assert config.train_cfg.max_epochs == epochs
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4
    )
    assert 'paramwise_cfg' not in config.optim_wrapper  # decay on ALL parameters
    model = config.model
    assert (model.queue_len, model.feat_dim, model.loss_lambda) == (65536, 128, 0.5)
    assert (model.momentum, model.head.temperature) == (0.001, 0.2)
    assert model.backbone.norm_cfg.type == 'BN'  # shuffled, not synchronised
    dataset = config.train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix) == images
    assert config.train_dataloader.batch_size * 8 == 256


def test_golden_info_nce(golden):
    g = golden('densecl_losses')
    q, k = (normalize(g[name], dim=1) for name in ('global_q', 'global_k'))
    close(info_nce(q, k, g['queue_global'], float(g['temperature'])), g['loss_single'])
