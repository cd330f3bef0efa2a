# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Vision transformers between timm's names, mmpretrain, mmseg and ViTDet: the same maps."""

import importlib

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmpretrain.models import VisionTransformer

from mmdense.checkpoints.dialects import DIALECTS, to_names_of
from mmdense.registry import MODELS
from mmdense.utils.errors import CheckpointError

DIM, DEPTH, HEADS, PATCH = 16, 4, 2, 8
ARCH = dict(embed_dims=DIM, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * DIM)
LN = dict(type='LN', eps=1e-6)


def vit(size=32, **more):
    """Return mmpretrain's vision transformer, which gives the map of each block."""
    return VisionTransformer(
        arch=ARCH,
        img_size=size,
        patch_size=PATCH,
        out_type='featmap',
        out_indices=[0, 1, 2, 3],
        **more,
    )


def mmseg_vit(size=32, **more):
    cfg = dict(
        type='mmseg.VisionTransformer',
        embed_dims=DIM,
        num_layers=DEPTH,
        num_heads=HEADS,
        img_size=size,
        patch_size=PATCH,
        out_indices=(0, 1, 2, 3),
        final_norm=True,
        patch_bias=True,
        norm_cfg=LN,
    )
    return dict(cfg, **more)


def mmseg_mae(size=32, **more):
    cfg = mmseg_vit(size, type='mmseg.MAE', init_values=1.0)
    del cfg['patch_bias']
    return dict(cfg, **more)


def vitdet(size=32, **more):
    cfg = dict(
        type='mmpretrain.ViTSAM',
        arch=dict(ARCH, global_attn_indexes=[2]),
        img_size=size,
        patch_size=PATCH,
        out_channels=0,
        out_indices=[0, 1, 2, 3],
        out_type='featmap',
        window_size=4,
    )
    return dict(cfg, **more)


@pytest.fixture(scope='module')
def source():
    """A vision transformer with random weights."""
    torch.manual_seed(0)
    model = vit()
    rng = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=rng) * (0.2 if value.dim() > 1 else 1))
    model.eval()
    return model


@pytest.fixture(params=['mmpretrain', 'timm'])
def file(request, source, tmp_path):
    """The weights in a file, by the names of a package."""
    tensors = source.state_dict()
    if request.param == 'timm':
        names = {(d.package, d.network): d for d in DIALECTS}
        tensors = to_names_of(names['timm', 'vision transformer'], tensors)
        assert 'blocks.0.mlp.fc1.weight' in tensors
    path = str(tmp_path / 'vit.pth')
    torch.save(dict(model=tensors), path)
    return path


@pytest.fixture
def fill(file, require, caplog):
    """Build a backbone of any package, filled from the file; and what the log says."""

    def call(cfg, **more):
        package = cfg['type'].split('.')[0]
        require(package)
        importlib.import_module(f'{package}.models')
        init = dict(type='mmdense.SelfSupPretrained', checkpoint=file, **more)
        with DefaultScope.overwrite_default_scope(package):
            model = MODELS.build(dict(cfg, init_cfg=init))
        lines = []
        module = importlib.import_module('mmdense.checkpoints.self_sup_pretrained')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, 'print_log', lambda text, **_: lines.append(text))
            model.init_weights()
        model.eval()
        return model, lines[0]

    return call


def compare(model, source, size):
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours, theirs = model(image), source(image)
    assert len(ours) == len(theirs) == DEPTH
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_mmseg_vision_transformer(fill, source):
    model, line = fill(mmseg_vit())
    assert 'begin anew' not in line and 'resized' not in line
    compare(model, source, (32, 32))
    larger, line = fill(mmseg_vit(64))
    assert line.endswith('pos_embed resized from 4×4 to 8×8 patches')
    compare(larger, source, (64, 64))
    wide, line = fill(mmseg_vit((32, 64)))
    assert line.endswith('pos_embed resized from 4×4 to 4×8 patches')
    compare(wide, source, (32, 64))


def test_mmseg_mae(fill, source):
    """All of it but the scales and the biases by relative position."""
    model, line = fill(mmseg_mae())
    names = [
        *(f'layers.{i}.gamma_{j}' for i in range(DEPTH) for j in (1, 2)),
        *(f'layers.{i}.attn.relative_position_bias_table' for i in range(DEPTH)),
        *(f'layers.{i}.attn.relative_position_index' for i in range(DEPTH)),
    ]
    new = line.split('layers begin anew: ')[1].split(';')[0].split(', ')
    assert sorted(new) == sorted(names)
    assert set(model.state_dict()) - set(names) == set(source.state_dict())
    compare(model, source, (32, 32))
    larger, line = fill(mmseg_mae(64))
    assert 'pos_embed resized from 4×4 to 8×8 patches' in line
    compare(larger, source, (64, 64))


def test_vitdet(fill, source):
    """All of it but the relative positions; with windows as large as the image, the same maps up
    to the last norm, which it has not."""
    model, line = fill(vitdet())
    names = [f'layers.{i}.attn.rel_pos_{axis}' for i in range(DEPTH) for axis in 'hw']
    new = line.split('layers begin anew: ')[1].split(';')[0].split(', ')
    assert sorted(new) == sorted(names) and 'resized' not in line
    assert all(not model.state_dict()[name].any() for name in names)
    left = set(source.state_dict()) - set(model.state_dict())
    assert left == {'cls_token', 'ln1.weight', 'ln1.bias'}
    # no block looks at a class token
    plain = vit(with_cls_token=False, final_norm=False)
    plain.load_state_dict(
        dict(
            {k: v for k, v in source.state_dict().items() if k in plain.state_dict()},
            pos_embed=source.pos_embed[:, 1:],
        )
    )
    plain.eval()
    compare(model, plain, (32, 32))
    larger, line = fill(vitdet(64))
    assert 'pos_embed resized from 4×4 to 8×8 patches' in line
    assert larger.pos_embed.shape == (1, 8, 8, DIM)


def test_without_a_class_token(fill, source):
    """The positions of the patches alone."""
    cfg = dict(type='mmpretrain.VisionTransformer', arch=ARCH, img_size=32, patch_size=PATCH)
    model, line = fill(dict(cfg, with_cls_token=False, out_type='featmap'))
    assert torch.equal(model.pos_embed, source.pos_embed[:, 1:]) and 'resized' not in line


def test_what_does_not_fit_is_refused(fill):
    with pytest.raises(CheckpointError, match='patch_embed.projection.bias.*set patch_bias=True'):
        fill(mmseg_vit(patch_bias=False))
    with pytest.raises(CheckpointError, match='2 more in the file|more in the file'):
        fill(mmseg_vit(num_layers=2, out_indices=(0, 1)))
    with pytest.raises(CheckpointError, match='missing from the file: channel_reduction'):
        fill(vitdet(out_channels=8))


def test_positions_of_no_square_are_refused(source, tmp_path):
    """Of 4×5 patches, for instance: their grid is not known."""
    state = dict(source.state_dict(), pos_embed=torch.zeros(1, 1 + 20, DIM))
    torch.save(state, tmp_path / 'x.pth')
    init = dict(type='mmdense.SelfSupPretrained', checkpoint=str(tmp_path / 'x.pth'))
    with pytest.raises(CheckpointError, match=r'of another shape: pos_embed \(1×21×16 in the file'):
        vit(init_cfg=init).init_weights()


# ---------------------------------------------------------------- configs/transfer


def inherit(name, tmp_path):
    """The config of a project that inherits one of ours."""
    (tmp_path / 'project.py').write_text(
        f"_base_ = __import__('mmdense') and 'mmdense::transfer/{name}.py'\n"
    )
    config = Config.fromfile(str(tmp_path / 'project.py'))
    config.dump(str(tmp_path / 'dumped.py'))
    assert Config.fromfile(str(tmp_path / 'dumped.py')).to_dict() == config.to_dict()
    return config


def train_a_step(config, batch, source):
    """Build, fill, and take a step of the optimizer of a config; return the model, and the
    learning rate of each parameter by name."""
    scope = config.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        model = revert_sync_batchnorm(MODELS.build(config.model))
        model.init_weights()
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
    kept = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    theirs = source.state_dict()
    assert len(kept.keys() & theirs.keys()) >= len(theirs) - 3
    for name in (kept.keys() & theirs.keys()) - {'pos_embed'}:
        assert torch.equal(kept[name], theirs[name]), name
    names = {id(p): name for name, p in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    rates = {names[id(p)]: group['lr'] for group in groups for p in group['params']}
    assert rates.keys() == {k for k, p in model.named_parameters() if p.requires_grad}
    model.train()
    data = model.data_preprocessor(batch, True)
    with DefaultScope.overwrite_default_scope(scope):
        losses = model(**data, mode='loss')
        loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    wrapper.update_params(loss)
    assert all(p.isfinite().all() for p in model.parameters())
    for name, value in model.backbone.state_dict().items():
        if name.endswith(('qkv.weight', 'pos_embed', 'rel_pos_h', 'bias_table')):
            assert not torch.equal(value, kept[name]), name
    return model, rates


def test_upernet(file, source, tmp_path, require, monkeypatch):
    require('mmseg')
    from mmseg.structures import SegDataSample

    monkeypatch.setenv('CHECKPOINT', file)
    config = inherit('mmseg/upernet_vit-b_160k_ade20k-512x512', tmp_path)
    assert config.model.backbone.init_values == 1.0 and config.model.backbone.norm_cfg.eps == 1e-6
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    small = dict(img_size=(64, 64), patch_size=PATCH, embed_dims=DIM, num_layers=DEPTH)
    config.model.backbone.update(small, num_heads=HEADS, out_indices=[0, 1, 2, 3])
    config.model.neck.embed_dim = DIM
    for head in ('decode_head', 'auxiliary_head'):
        config.model[head].channels = 8
    config.model.decode_head.in_channels = [DIM] * 4
    config.model.auxiliary_head.in_channels = DIM
    config.model.data_preprocessor.size = (64, 64)
    config.optim_wrapper.paramwise_cfg.num_layers = DEPTH
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    _, rates = train_a_step(config, dict(inputs=images, data_samples=samples), source)
    for i in range(DEPTH):
        rate = rates[f'backbone.layers.{i}.attn.qkv.weight']
        assert rate == pytest.approx(1e-4 * 0.65 ** (DEPTH - i)), i
    assert rates['backbone.cls_token'] == pytest.approx(1e-4 * 0.65 ** (DEPTH + 1))
    assert rates['decode_head.conv_seg.weight'] == pytest.approx(1e-4)


def test_mask_rcnn(file, source, tmp_path, require, monkeypatch):
    require('mmdet')
    from mmdet.testing import demo_mm_inputs

    monkeypatch.setenv('CHECKPOINT', file)
    config = inherit('mmdet/mask-rcnn_vit-b_sfp_lsj-100e_coco', tmp_path)
    assert config.train_cfg.max_epochs * config.train_dataloader.dataset.times == 100
    assert config.auto_scale_lr.base_batch_size == 64
    assert config.param_scheduler[1].end == config.train_cfg.max_epochs
    config.model.data_preprocessor.pad_size_divisor = 64
    arch = dict(ARCH, global_attn_indexes=[1])
    config.model.backbone.update(arch=arch, img_size=64, patch_size=PATCH, window_size=4)
    config.model.neck.update(in_channels=DIM, out_channels=16)
    config.model.rpn_head.update(in_channels=16, feat_channels=16)
    config.model.rpn_head.anchor_generator.strides = [2, 4, 8, 16, 32]
    roi_head = config.model.roi_head
    for name, strides in (('bbox', [2, 4, 8, 16]), ('mask', [2, 4, 8, 16])):
        extractor = roi_head[f'{name}_roi_extractor']
        extractor.update(out_channels=16, featmap_strides=strides)
    roi_head.bbox_head.update(in_channels=16, conv_out_channels=16, fc_out_channels=16)
    roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    config.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    config.model.train_cfg.rcnn.sampler.num = 8
    batch = demo_mm_inputs(1, [[3, 60, 64]], num_items=[3], num_classes=80, with_mask=True)
    model, rates = train_a_step(config, batch, source)
    norms = {type(m).__name__ for m in model.modules() if 'Norm' in type(m).__name__}
    assert norms == {'LayerNorm', 'LayerNorm2d'}
    for i in range(DEPTH):
        rate = rates[f'backbone.layers.{i}.attn.qkv.weight']
        assert rate == pytest.approx(1e-4 * 0.7 ** (DEPTH - i)), i
    assert rates['backbone.pos_embed'] == pytest.approx(1e-4 * 0.7 ** (DEPTH + 1))
    assert rates['neck.levels.0.0.weight'] == pytest.approx(1e-4)


def test_simple_feature_pyramid():
    with DefaultScope.overwrite_default_scope('mmdense'):
        neck = MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=8, out_channels=4))
    maps = neck((torch.randn(2, 3, 1, 1), torch.randn(2, 8, 6, 10)))
    shapes = [tuple(x.shape) for x in maps]
    assert shapes == [(2, 4, 6 * 4 // s, 40 // s) for s in (1, 2, 4, 8)] + [(2, 4, 2, 3)]
    # as ViTDet's code has it: eight convolutions of the levels, three transposed ones
    kinds = [type(m).__name__ for m in neck.modules()]
    assert kinds.count('Conv2d') == 8 and kinds.count('ConvTranspose2d') == 3
