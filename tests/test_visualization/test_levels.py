# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from mmpretrain.models import ConvNeXt, MobileNetV2, ResNet, SwinTransformer
from PIL import Image

from mmdense.checkpoints import saved_model_config
from mmdense.checkpoints.backbones import load_backbones
from mmdense.evaluation.feature_maps import read_images, stage_maps, to_inputs
from mmdense.models.utils import calibrate
from mmdense.utils.errors import CheckpointError, DataError, InputError
from mmdense.visualization import draw_levels, pca_colours


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return ResNet(18)


def maps_of(shapes, channels=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, *shape, generator=rng) for shape in shapes]


def test_colours_are_the_principal_components_in_order():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 9), indexing='ij')
    # channels that are uncorrelated over the grid, of falling variance, and a mean to take off
    features = torch.stack([-0.1 * x * y, 5 * x, torch.zeros(7, 9), -2 * y]) + 3
    stage = pca_colours([features])
    assert stage.channels == 4 and stage.explained == pytest.approx(1)
    colours = torch.from_numpy(stage.colours[0]).float()
    # the largest loading is positive, so each goes the way of its channel
    for colour, channel in zip(colours.unbind(2), (5 * x, -2 * y, -0.1 * x * y)):
        assert torch.corrcoef(torch.stack([colour.flatten(), channel.flatten()]))[0, 1] > 0.99
        assert colour.min() == 0 and colour.max() == 1


def test_equals_the_singular_value_decomposition():
    maps = [m * torch.arange(8, 0, -1)[:, None, None] for m in maps_of([(5, 6), (4, 9)])]
    cells = torch.cat([m.flatten(1) for m in maps], dim=1).T.double()
    cells = cells - cells.mean(dim=0)
    u, s, v = torch.linalg.svd(cells, full_matrices=False)
    stage = pca_colours(maps)
    assert stage.explained == pytest.approx(float(s[:3].square().sum() / s.square().sum()))
    signs = v[:3].gather(1, v[:3].abs().argmax(dim=1, keepdim=True)).sign().T
    scores = (u[:, :3] * s[:3] * signs).numpy()
    low, high = np.percentile(scores, (1, 99), axis=0)
    got = np.concatenate([c.reshape(-1, 3) for c in stage.colours])
    np.testing.assert_allclose(got, ((scores - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_permuted_images_have_the_same_colours():
    maps = maps_of([(4, 6), (5, 3), (2, 2)])
    stage, other = pca_colours(maps), pca_colours(maps[::-1])
    assert [c.shape for c in stage.colours] == [(4, 6, 3), (5, 3, 3), (2, 2, 3)]
    for colours, same in zip(stage.colours, other.colours[::-1]):
        np.testing.assert_allclose(colours, same, atol=1e-8)


def test_normalized_features_forget_their_length():
    maps = maps_of([(4, 6)])
    longer = [m * torch.linspace(1, 9, 24).view(4, 6) for m in maps]
    got = [pca_colours(m, normalized=True).colours[0] for m in (maps, longer)]
    np.testing.assert_allclose(*got, atol=1e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, 1e6])
def test_constant_maps_are_grey(value):
    # with the rounding errors of a network, which are not to become colours
    maps = [value * (1 + 1e-7 * m) for m in maps_of([(4, 5), (3, 3)])]
    stage = pca_colours(maps)
    assert all((c == 0.5).all() for c in stage.colours) and 0 <= stage.explained <= 1


def test_few_channels_and_a_lone_cell():
    assert (pca_colours(maps_of([(4, 5)], channels=1)).colours[0][..., 1:] == 0.5).all()
    lone = torch.zeros(8, 20, 20)
    lone[0, 3, 4] = 1
    red = pca_colours([lone]).colours[0][..., 0]
    assert red[3, 4] == 1 and red.sum() == 1


def test_stages_of_a_resnet_are_its_layers(resnet):
    images = [torch.randn(1, 3, 64, 96), torch.randn(1, 3, 70, 33)]
    maps = stage_maps(resnet.requires_grad_(False), images)
    assert [[tuple(m.shape) for m in stage] for stage in maps] == [
        [(64, 16, 24), (64, 18, 9)],
        [(128, 8, 12), (128, 9, 5)],
        [(256, 4, 6), (256, 5, 3)],
        [(512, 2, 3), (512, 3, 2)],
    ]
    resnet.eval()
    (last,) = resnet(images[0])
    assert torch.equal(stage_maps(resnet, images)[-1][0], last[0])


def test_stages_of_other_backbones():
    image = torch.randn(1, 3, 224, 256)
    tiny = dict(depths=[1, 1, 1, 1], channels=[4, 8, 12, 16])
    swin = dict(embed_dims=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    for backbone in (ConvNeXt(tiny), SwinTransformer(swin)):
        shapes = [tuple(stage[0].shape[1:]) for stage in stage_maps(backbone, [image])]
        assert shapes == [(56, 64), (28, 32), (14, 16), (7, 8)]
    with pytest.raises(InputError, match='MobileNetV2 is a backbone of unknown kind'):
        stage_maps(MobileNetV2(), [image])


def test_features_that_are_not_finite(resnet):
    resnet.layer3[0].conv1.weight.data.fill_(float('nan'))
    with pytest.raises(InputError, match='features of stage 4 are not finite'):
        stage_maps(resnet, [torch.randn(1, 3, 64, 64)])


def test_calibration_gives_the_statistics_of_the_images(resnet):
    images = [torch.randn(1, 3, 64, 64) + i for i in range(3)]
    calibrate(resnet, images)
    assert not any(m.training for m in resnet.modules())
    with torch.no_grad():
        means = torch.stack([resnet.conv1(i).mean(dim=(0, 2, 3)) for i in images])
    torch.testing.assert_close(resnet.norm1.running_mean, means.mean(dim=0))
    assert resnet.norm1.momentum == 0.1


def test_images_keep_aspect_and_colours(tmp_path):
    path = tmp_path / 'a.png'
    Image.new('RGB', (300, 200), (255, 0, 0)).save(path)
    (image,) = read_images([path], 96)
    assert image.shape == (64, 96, 3) and image[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(DataError, match='cannot read image .*none.png'):
        read_images([path, tmp_path / 'none.png'], 96)


def test_by_tensors_and_by_config_it_is_the_same_backbone(resnet, tmp_path):
    plain, run = str(tmp_path / 'plain.pth'), str(tmp_path / 'run.pth')
    tensors = resnet.state_dict()
    torch.save(tensors, plain)
    config = """
model = dict(
    backbone=dict(type='mmpretrain.ResNet', depth=18, norm_cfg=dict(type='SyncBN'),
                  init_cfg=dict(type='Pretrained', checkpoint='none.pth')),
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255], to_rgb=True))
"""
    meta = dict(cfg=config, mmdense=dict(product='a.b'))
    torch.save(dict(meta=meta, state_dict={f'a.b.{k}': v for k, v in tensors.items()}), run)
    one, two = load_backbones(plain), load_backbones(run)
    assert one.about == 'ResNet-18 by its tensors' and two.about == "ResNet-18 by the run's config"
    for network in ('pretrained', 'random'):
        states = [getattr(b, network).state_dict() for b in (one, two)]
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
        assert torch.equal(states[0]['conv1.weight'], tensors['conv1.weight']) is (
            network == 'pretrained'
        )
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert to_inputs([red], two.preprocessor)[0][0, :, 0, 0].tolist() == [1, 0, 0]
    assert to_inputs([red], one.preprocessor)[0][0, :, 0, 0].tolist() == pytest.approx(
        [(255 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375]
    )


@pytest.mark.parametrize(
    'backbone',
    [
        "dict(type='subprocess.check_call', args=['touch', 'ran'])",
        "dict(type='mmpretrain.ResNet', depth=18, norm_cfg=dict(type='os.abort'))",
        "dict(type='mmpretrain.get_model', model='a.py')",
        "dict(type='mmpretrain.TIMMBackbone', model_name='resnet18', pretrained=True)",
        "dict(type='ResNet', depth=18, _scope_='os')",
        "dict(type=['ResNet'])",
    ],
)
def test_config_in_a_checkpoint_builds_registered_modules_only(backbone):
    with pytest.raises(CheckpointError, match='asks in its config for .*: refused'):
        saved_model_config(dict(cfg=f'model = dict(backbone={backbone})'))


def test_a_config_in_a_checkpoint_names_no_other_files():
    cfg = """
model = dict(backbone=dict(
    type='SwinTransformer', arch='tiny', pretrained='http://somewhere/a.pth',
    stage_cfgs=[dict(init_cfg=dict(type='Pretrained', checkpoint='http://somewhere/b.pth'))]))
"""
    model = saved_model_config(dict(cfg=cfg))
    assert model == dict(backbone=dict(type='SwinTransformer', arch='tiny', stage_cfgs=[{}]))


def test_only_parts_that_are_built_are_checked():
    cfg = dict(cfg="model = dict(type='MaskRCNN', backbone=dict(type='ResNet', depth=18))")
    assert saved_model_config(cfg, parts=['backbone'])['backbone']['depth'] == 18
    with pytest.raises(CheckpointError, match="type='MaskRCNN'"):
        saved_model_config(cfg)


def test_config_that_is_not_plain_is_none():
    for cfg in (None, 3, '', 'model = build()', 'model = (', 'other = dict()'):
        assert saved_model_config(dict(cfg=cfg)) is None


def test_unknown_tensors(tmp_path):
    path = str(tmp_path / 'a.pth')
    for tensors in ({'a.weight': torch.ones(1)}, {'layer1.0.conv1.weight': torch.ones(1)}):
        torch.save(tensors, path)
        with pytest.raises(CheckpointError, match='holds a backbone of unknown kind'):
            load_backbones(path)


def test_picture(tmp_path):
    shapes = [(64, 96), (96, 60)]
    images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    stages = [pca_colours(maps_of([(h // s, w // s) for h, w in shapes])) for s in (4, 8, 16)]
    networks = dict(pretrained=stages, random=stages)
    path = tmp_path / 'a.png'
    figure = draw_levels(images, ['x/wide.jpg', 'x/high.jpg'], networks, 'a title', str(path))
    assert Image.open(path).width > 500
    axes = figure.axes
    assert len(axes) == 2 * (1 + 2 * 3)
    titles = [axis.get_title() for axis in axes]
    assert titles[:4] == [
        'wide.jpg',
        'stage 2\nstride 4, 8 channels',
        'stage 3\nstride 8, 8 channels',
        'stage 4\nstride 16, 8 channels',
    ]
    assert [axis.get_ylabel() for axis in axes if axis.get_ylabel()] == ['pretrained', 'random'] * 2
    assert all(axis.images[0].get_extent() == [0, 96, 64, 0] for axis in axes[:7])
