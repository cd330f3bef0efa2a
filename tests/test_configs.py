# Copyright (c) mmdense authors. Licensed under the Apache License 2.0.
"""Every config builds; the recipes are the published ones."""

from pathlib import Path
from types import SimpleNamespace

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmdense.engine.training import start_from_checkpoint
from mmdense.registry import MODELS

REPO = Path(__file__).resolve().parents[1]
ALL = sorted(
    str(p.relative_to(REPO)) for p in (REPO / 'configs').rglob('*.py') if '_base_' not in p.parts
)
PRETRAINING = [p for p in ALL if 'transfer' not in p]


PRODUCT = dict(
    DenseCL='backbone',
    DetCo='backbone',
    PixPro='backbone',
    SimSiam='backbone',
    SlotCon='encoder_k.module.backbone',
)


def load(path):
    return Config.fromfile(str(REPO / path))


def test_there_are_some():
    assert 'configs/densecl_r50_coco.py' in ALL and 'configs/densecl_r50_in1k.py' in ALL


@pytest.mark.parametrize('path', ALL)
def test_survives_a_dump(path, tmp_path):
    """MMEngine writes the config into the work directory."""
    config = load(path)
    config.dump(str(tmp_path / 'config.py'))
    again = Config.fromfile(str(tmp_path / 'config.py'))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize('path', PRETRAINING)
def test_pretraining_configs_build(path):
    """Model, pipeline, optimiser and schedule, each from its registry."""
    from mmdense.registry import HOOKS, MODELS, TRANSFORMS

    config = load(path)
    assert config.default_scope == 'mmdense'
    if 'queue_len' in config.model:
        config.model.queue_len = 32
    with DefaultScope.overwrite_default_scope('mmdense'):
        model = MODELS.build(config.model)
        for transform in config.train_dataloader.dataset.pipeline:
            TRANSFORMS.build(transform)
        for hook in config.default_hooks.values():
            HOOKS.build(hook)
    assert model.get_product() is model.get_submodule(PRODUCT[config.model.type])
    (schedule,) = config.param_scheduler
    if schedule.type == 'CosineAnnealingLR':
        assert schedule.T_max == schedule.end == config.train_cfg.max_epochs
    else:  # as long as the run
        assert schedule.type == 'WarmupCosineLR' and 'end' not in schedule
    if 'demo' not in path:
        gpus = 1 if 'small' in path else 8
        batch = gpus * config.train_dataloader.batch_size
        assert config.auto_scale_lr.base_batch_size == batch


@pytest.mark.parametrize(
    'path, epochs, lr, images',
    [
        ('configs/densecl_r50_coco.py', 800, 0.3, ('data/coco', 'train2017')),
        ('configs/densecl_r50_in1k.py', 200, 0.03, ('data/imagenet', 'train')),
    ],
)
def test_densecl_recipe(path, epochs, lr, images):
    config = load(path)
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
    config = load(path)
    _check_lars_recipe(config, 1024, epochs, images)
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


@pytest.mark.parametrize(
    'path, epochs, prototypes, images',
    [
        ('configs/slotcon_r50_coco.py', 800, 256, 'train2017'),
        ('configs/slotcon_r50_cocoplus.py', 800, 256, ['train2017', 'unlabeled2017']),
        ('configs/slotcon_r50_in1k.py', 100, 2048, 'train'),
        ('configs/slotcon/slotcon_resnet50_8xb64-coslr-200e_in1k.py', 200, 2048, 'train'),
    ],
)
def test_slotcon_recipe(path, epochs, prototypes, images):
    config = load(path)
    _check_lars_recipe(config, 512, epochs, images)
    model = config.model
    assert (model.num_prototypes, model.group_weight) == (prototypes, 0.5)
    assert (model.student_temperature, model.teacher_temperature) == (0.1, 0.07)
    assert (model.head.temperature, model.center_momentum) == (0.2, 0.9)
    for mlp, channels in ((model.neck, 2048), (model.head.predictor, 256)):
        assert (mlp.in_channels, mlp.hid_channels, mlp.out_channels) == (channels, 4096, 256)
        assert (mlp.num_layers, mlp.act_cfg.type, mlp.norm_cfg.type) == (3, 'GELU', 'SyncBN')
        assert mlp.init_cfg.std == 0.02
    first, second = config.train_dataloader.dataset.pipeline[1].transforms
    for view in (first, second):
        assert view[0].crop_ratio_range == (0.08, 1.0) and view[0].interpolation == 'bicubic'
    assert 'min_overlap' not in first[0] and second[0].min_overlap == 0.01


def _check_lars_recipe(config, batch, epochs, images):
    optimizer = dict(type='mmdense.LARS', lr=batch / 256, momentum=0.9, weight_decay=1e-5)
    assert config.optim_wrapper.optimizer == optimizer
    assert config.train_dataloader.batch_size * 8 == batch
    assert config.train_cfg.max_epochs == epochs
    assert config.train_dataloader.dataset.data_prefix == images
    (schedule,) = config.param_scheduler
    assert (schedule.warmup, schedule.start_factor, schedule.eta_min) == (5, 0.01, 1e-6)
    assert schedule.convert_to_iter_based
    model = config.model
    assert (model.momentum, model.end_momentum) == (0.01, 0)
    assert model.backbone.norm_cfg.type == 'SyncBN' and 'zero_init_residual' not in model.backbone


@pytest.mark.parametrize(
    'path, epochs, lr, pairings, weights',
    [
        ('configs/detco_r50_in1k.py', 200, 0.03, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        ('configs/detco_r50_coco.py', 800, 0.3, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        (
            'configs/detco/detco-aa_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg', 'll', 'gl'), (0.1, 0.4, 0.7, 1.0)),
        ),
        (
            'configs/detco/detco-multi-level_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg',), (0.1, 0.4, 0.7, 1.0)),
        ),
        (
            'configs/detco/detco-global-local_resnet50_8xb32-coslr-200e_in1k.py',
            *(200, 0.03, ('gg', 'll', 'gl'), (1.0,)),
        ),
    ],
)
def test_detco_recipe(path, epochs, lr, pairings, weights):
    config = load(path)
    assert config.train_cfg.max_epochs == epochs
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4
    )
    model = config.model
    assert (model.pairings, model.stage_weights) == (pairings, weights)
    assert (model.queue_len, model.feat_dim, model.momentum) == (65536, 128, 0.001)
    assert (model.head.temperature, model.backbone.norm_cfg.type) == (0.2, 'BN')
    assert 'in_channels' not in model.neck  # read from the backbone
    views = config.train_dataloader.dataset.pipeline[1]
    assert views.num_views == (2 if pairings == ('gg',) else [2, 2])  # with patches or without


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
    config = load(path)
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
    from mmengine.optim import build_optim_wrapper

    from mmdense.registry import HOOKS

    config = load('configs/simsiam_r50_coco.py')
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


@pytest.mark.parametrize('scope', ['mmdense', 'mmpretrain', 'mmengine'])
@pytest.mark.parametrize(
    'recipe',
    [
        'densecl/densecl_resnet50_8xb32-coslr-800e_coco.py',
        'detco/detco-aa_resnet50_8xb32-coslr-200e_in1k.py',
        'pixpro/pixpro-instance_resnet50_8xb128-coslr-100e_in1k.py',
        'simsiam/simsiam_resnet50_8xb32-coslr-800e_coco.py',
        'slotcon/slotcon_resnet50_8xb64-coslr-800e_coco.py',
    ],
)
def test_inherited_recipes_mean_the_same_under_other_scopes(recipe, scope, tmp_path):
    """mmpretrain has a LARS, RandomResizedCrop and MultiView of its own."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DATASETS

    lazy = dict(data_root=str(tmp_path), lazy_init=True)

    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = __import__('mmdense') and 'mmdense::{recipe}'\ndefault_scope = {scope!r}\n"
    )
    config = Config.fromfile(str(child))
    with DefaultScope.overwrite_default_scope('mmdense'):
        own = DATASETS.build(dict(load(f'configs/{recipe}').train_dataloader.dataset, **lazy))
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = build_optim_wrapper(nn.Linear(2, 2), config.optim_wrapper)
        inherited = DATASETS.build(dict(config.train_dataloader.dataset, **lazy))
    assert type(inherited) is type(own) and repr(inherited.pipeline) == repr(own.pipeline)
    kinds = [[type(t) for t in dataset.pipeline.transforms] for dataset in (inherited, own)]
    assert kinds[0] == kinds[1]
    package = 'torch' if recipe.startswith(('de', 'simsiam')) else 'mmdense'
    assert type(wrapper.optimizer).__module__.split('.')[0] == package


@pytest.mark.parametrize('method', ['densecl', 'pixpro', 'simsiam', 'slotcon', 'detco'])
@pytest.mark.parametrize('whole', [True, False])
def test_small_configs_go_on_from_weights(tmp_path, method, whole):
    """By the lines of configs/small/README.md."""

    def build(*lines):
        cfg = load(f'configs/small/{method}_r50_small.py')
        cfg.model.backbone.depth = 18
        if method == 'detco':
            cfg.model.neck.in_channels = [64, 128, 256, 512]
        else:
            cfg.model.neck.in_channels = 512
        for line in lines:
            assert f'`{line}`' in page
            cfg.merge_from_dict(Config.fromstring(line.replace('FILE', file), '.py').to_dict())
        start_from_checkpoint(cfg)
        with DefaultScope.overwrite_default_scope('mmdense'):
            model = MODELS.build(cfg.model)
        model.init_weights()
        return model, cfg

    page, file = (REPO / 'configs/small/README.md').read_text(), str(tmp_path / 'given.pth')
    more = ['model = dict(num_prototypes=256)'] if method == 'slotcon' else []
    model, _ = build(*more)  # as published ones have
    given, about = model.state_dict(), dict(algorithm=type(model).__name__, product=model.product)
    kept = given if whole else model.backbone.state_dict()
    torch.save(dict(meta=dict(mmdense=about) if whole else {}, state_dict=kept), file)
    lines = ["load_from = 'FILE'", *more] if whole else ["model = dict(pretrained='FILE')"]
    if method == 'densecl':
        lines.append('custom_hooks = []')
    model, cfg = build(*lines)
    assert not cfg.get('custom_hooks')
    parts = ('backbone.', 'neck.') if whole else ('backbone.',)
    for name, value in model.state_dict().items():
        if name.startswith(parts):
            assert torch.equal(value, given[name]), name
